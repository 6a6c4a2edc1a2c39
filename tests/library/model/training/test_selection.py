"""The data chooses the estimator: the simplest of the best, the same one on any machine, honestly measured."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.catalog import STANDARD_ESTIMATORS, Extra, list_estimators
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.model.training import comparison, selection, train
from flywheel_ml.model.training.selection import CandidateEstimator, OutOfFold, TrainingTable
from flywheel_ml.utils.errors import ConfigError
from library.model.pipelines.test_estimators import contract_of

LINEAR, BOOSTING, FOREST = (
    CandidateEstimator("logistic_regression"),
    CandidateEstimator("hist_gradient_boosting"),
    CandidateEstimator("random_forest"),
)


def auto(params: Params, **train_params: Any) -> Params:
    update = {"estimator": "auto", "candidates": (), "sklearn_default": False, **train_params}
    chosen = params.train.model_copy(update=update)
    return params.model_copy(update={"train": chosen, "split": params.split.model_copy(update={"by": "hash"})})


def plain(contract: Contract) -> Featurizer:
    return Featurizer(contract)


def numbers(task: Task, n_rows: int, seed: int = 0, signal: float = 1.0) -> tuple[Contract, pl.DataFrame]:
    """Three numbers, of which the first decides in a line."""
    contract = contract_of(task, *({"name": name, "type": "float"} for name in "abc"))
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_rows, 3))
    score = signal * 2 * values[:, 0] + rng.normal(size=n_rows)
    target: Any = score
    if contract.classes:
        edges = np.quantile(score, np.arange(1, len(contract.classes)) / len(contract.classes))
        target = [contract.classes[at] for at in np.searchsorted(edges, score)]
    return contract, pl.DataFrame({**dict(zip("abc", values.T, strict=True)), "target": target})


def test_winner_is_the_simplest_within_one_standard_error() -> None:
    rng = np.random.default_rng(0)
    best = rng.uniform(size=400)
    noise = rng.normal(size=400)
    noise -= noise.mean()
    losses = {LINEAR: best + 0.2, FOREST: best + 0.04 + noise, BOOSTING: best}
    ones, rows = np.ones(400), np.arange(400)
    winner, told = selection.choose(losses, ones, rows)
    assert winner == FOREST
    assert told[1][1] == pytest.approx(0.04)
    assert told[1][2] == pytest.approx(noise.std(ddof=1) / 20)
    assert selection.choose({**losses, FOREST: best + 0.06 + noise}, ones, rows)[0] == BOOSTING
    assert selection.choose({LINEAR: best, BOOSTING: best}, ones, rows)[0] == LINEAR


def test_standard_error_counts_clusters_not_rows() -> None:
    per_group = np.random.default_rng(0).normal(size=50)
    values, clusters = np.repeat(per_group, 20), np.repeat(np.arange(50), 20)
    mean, error, count = selection.compute_mean_and_error(values, np.ones(1000), clusters)
    assert count == 50
    assert mean == pytest.approx(per_group.mean())
    assert error == pytest.approx(per_group.std(ddof=1) / 50**0.5)
    assert error > 4 * selection.compute_mean_and_error(values, np.ones(1000), np.arange(1000))[1]


def test_weights_count_as_repeated_rows() -> None:
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.0])
    assert selection.compute_mean_and_error(values, weights, np.arange(3))[0] == 2.25


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_auto_chooses_a_line_for_a_line_and_reports_all(task: Task, params: Params) -> None:
    contract, table = numbers(task, 400)
    told: list[str] = []
    fitted = train.train(table[:340], contract, auto(params), table[340:], lambda score: told.append(score.name))
    report = fitted.selection.report()
    assert fitted.selection.winner.estimator == list_estimators(STANDARD_ESTIMATORS, task)[0]
    assert [score["name"] for score in report["candidates"]] == told == list(list_estimators(STANDARD_ESTIMATORS, task))
    assert report["method"].startswith("5-fold cross-validation")
    assert "seconds" not in str(report)


def test_auto_chooses_boosting_where_columns_interact(params: Params) -> None:
    rng = np.random.default_rng(0)
    contract = contract_of("regression", *({"name": name, "type": "float"} for name in "ab"))
    a, b = rng.normal(size=(2, 800))
    table = pl.DataFrame({"a": a, "b": b, "target": np.sign(a * b) * 5 + rng.normal(size=800)})
    chosen = auto(params, candidates=("ridge", "hist_gradient_boosting"))
    fitted = train.train(table, contract, chosen)
    assert fitted.selection.winner == BOOSTING


@pytest.mark.full
def test_choice_repeats_bit_for_bit(params: Params) -> None:
    contract, table = numbers("multiclass", 300)
    chosen = auto(params, candidates=("logistic_regression", "random_forest"))
    first, again = (train.train(table, contract, chosen) for _ in range(2))
    assert first.selection.report() == again.selection.report()
    for one, other in zip(first.out_of_fold, again.out_of_fold, strict=True):
        assert one.tobytes() == other.tobytes()


def test_candidate_of_another_task_is_refused_by_its_key(params: Params) -> None:
    contract, table = numbers("binary", 60)
    with pytest.raises(ConfigError, match=r"train.candidates 'ridge' is not for binary, .*choose from logistic_reg"):
        train.train(table, contract, auto(params, candidates=("ridge",)))


def test_candidate_whose_extra_is_missing_names_the_command(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = Extra("no_such_module", "boosters")
    monkeypatch.setitem(STANDARD_ESTIMATORS, "mlp", STANDARD_ESTIMATORS["mlp"]._replace(extra=extra))
    contract, table = numbers("binary", 60)
    wanted = r"train.candidates 'mlp' needs the package no_such_module; install it with `uv sync --extra boosters`"
    with pytest.raises(ConfigError, match=wanted):
        train.train(table, contract, auto(params))


def test_estimated_cost_grows_with_more_than_eight_classes(params: Params) -> None:
    featurizer = plain(numbers("multiclass", 10)[0])
    for name in ("mlp", "random_forest"):
        few, eight, many = (
            selection.estimate_cost(CandidateEstimator(name), 1000, n_classes, featurizer, params.train)
            for n_classes in (2, 8, 32)
        )
        assert few == eight
        assert many == pytest.approx(5 / 3 * few, rel=0.01)


def test_costly_candidates_are_dropped_by_size_and_reported(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, table = numbers("binary", 200)
    monkeypatch.setattr(selection, "BUDGET", 1.0)
    fitted = train.train(table, contract, auto(params))
    assert "mlp" in fitted.selection.report()["too_costly"]
    assert fitted.selection.scores[0].name == "logistic_regression"


def test_groups_stay_together_and_time_runs_forward(params: Params) -> None:
    contract, table = numbers("binary", 300)
    encoded = TrainingTable.encode(table, contract, plain(contract), "hash", None)
    groups = np.arange(300) // 6
    for fold in selection.split_folds(encoded._replace(groups=groups), "binary", 0):
        assert not set(groups[fold.fit]) & set(groups[fold.predict])
    for fold in selection.split_folds(encoded._replace(in_time=True), "binary", 0):
        assert fold.fit.max() < fold.predict.min()


def test_large_table_is_judged_on_validation_rows(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, table = numbers("regression", 900)
    monkeypatch.setattr(train, "SMALL_ROWS", 500)
    fitted = train.train(table[:600], contract, auto(params, candidates=("ridge", "spline_ridge")), table[600:])
    assert fitted.selection.method == "validation rows"
    rows, chose = fitted.out_of_fold.rows, fitted.out_of_fold.chose
    assert sorted(rows.tolist()) == list(range(900)), "three folds of the training rows, and both halves of the others"
    assert chose.sum() == 150
    assert (rows[chose] >= 600).all(), "half of the validation rows chose; the other half and the folds did not"


def test_out_of_fold_predictions_come_from_models_without_the_row(params: Params) -> None:
    contract, table = numbers("regression", 200, signal=0.0)
    chosen = auto(params, candidates=("random_forest",))
    out = train.train(table, contract, chosen).out_of_fold
    own_noise = np.corrcoef(out.answers[:, 0], out.truth)[0, 1]
    assert abs(own_noise) < 0.25, "a forest that had seen the rows would repeat them"


def compare(gain: float, n_rows: int = 500, clusters: int = 500) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=n_rows)
    error = np.repeat(rng.normal(size=clusters), n_rows // clusters)
    prior = np.zeros((n_rows, 1))
    answers = (truth * gain + 0.3 * error)[:, None]
    rows = OutOfFold(
        np.arange(n_rows),
        truth,
        np.ones(n_rows),
        np.arange(n_rows) * clusters // n_rows,
        np.zeros(n_rows, dtype=bool),
        answers,
        answers,
        prior,
    )
    return comparison.compare("regression", rows)


def test_comparison_tells_signal_from_none() -> None:
    assert compare(0.5)["prior"]["p_value"] < 1e-6
    assert compare(0.0)["prior"]["p_value"] > 0.9
    found = compare(0.5)
    assert (found["rows"], found["linear"]["p_value"], found["linear"]["gain"]) == (500, 0.5, 0.0)


def test_model_that_returns_the_prior_is_no_better_than_it() -> None:
    truth = np.random.default_rng(0).normal(size=100)
    same = np.zeros((100, 1))
    ones, chose = np.ones(100), np.zeros(100, dtype=bool)
    rows = OutOfFold(np.arange(100), truth, ones, np.arange(100), chose, same, same, same)
    assert comparison.compare("regression", rows)["prior"]["p_value"] == 0.5


def test_target_far_from_zero_is_learnt_around_its_mean(params: Params) -> None:
    contract, table = numbers("regression", 300)
    far = table.with_columns(pl.col("target") * 3 + 101_325)
    fitted = train.train(far, contract, auto(params, candidates=("ridge",)))
    assert fitted.model.center == pytest.approx(far["target"].mean())


def test_weights_move_the_fit_and_the_prior(params: Params) -> None:
    contract, table = numbers("regression", 200)
    columns = [*contract.columns, contract.columns[0].model_copy(update={"name": "w", "role": "weight"})]
    weighed = contract.model_copy(update={"columns": tuple(columns)})
    heavy = table["target"] > 0
    table = table.with_columns(pl.Series("w", np.where(heavy, 3.0, 1.0)))
    chosen = auto(params, candidates=("ridge",))
    fitted, bare = (train.train(table, one, chosen) for one in (weighed, contract))
    assert fitted.prior[0] == pytest.approx(np.average(table["target"], weights=table["w"]))
    assert fitted.prior[0] > bare.prior[0] + 0.1
    assert fitted.out_of_fold.weights.sum() == table["w"].sum()
    values, plain_values = (
        one.model.predict(estimators.to_frame(plain(weighed).encode({name: np.zeros(1) for name in "abc"})))
        for one in (fitted, bare)
    )
    assert values > plain_values


@pytest.mark.parametrize(("explained", "passes"), [(0.0, range(2)), (0.5, range(9, 11))])
def test_noise_is_refused_and_signal_passes(explained: float, passes: range, params: Params) -> None:
    """Ten tables of each; `benchmarks/gate_power.py` counts hundreds."""
    chosen = auto(params, candidates=list_estimators(STANDARD_ESTIMATORS, "regression")[:2], calibration="none").train
    found = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(6, 200))
        target = explained**0.5 * values[0] + (1 - explained) ** 0.5 * rng.normal(size=200)
        contract = contract_of("regression", *({"name": name, "type": "float"} for name in "abcdef"))
        rows = pl.DataFrame({**dict(zip("abcdef", values, strict=True)), "target": target})
        featurizer = Featurizer(contract)
        table = TrainingTable.encode(rows, contract, featurizer, "hash", None)
        one = selection.select(
            table, None, contract, chosen, featurizer, seed, lambda same: same, selection.ignore_score
        )
        found += comparison.compare("regression", one.out_of_fold)["prior"]["p_value"] < 0.05
    assert found in passes
