"""Evaluation compares the model with its baselines, by slice, and loads only the files that training wrote."""

import re
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.metrics import DecisionRule
from flywheel_ml.core.params import Params
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.training import train
from flywheel_ml.utils.errors import ConfigError, IntegrityError
from flywheel_ml.utils.files import sha256_file
from library.helpers import rows


@pytest.fixture(scope="module")
def fitted(table: pl.DataFrame, contract: Contract, params: Params) -> train.TrainedModels:
    return train.train(table.head(1500), contract, params, table[1500:2200])


@pytest.fixture(scope="module")
def found(fitted: train.TrainedModels, table: pl.DataFrame, contract: Contract, params: Params) -> dict[str, Any]:
    parts = {"validation": table[1500:2200], "test": table[2200:]}
    pipelines = {"model": fitted.model, "linear": fitted.baseline}
    return evaluate.evaluate(pipelines, parts, contract, params, fitted.prior, train.build_out_of_fold_table(fitted))


def test_the_model_stands_beside_both_baselines_on_the_same_rows(found: dict[str, Any]) -> None:
    metrics = found["metrics"]
    assert set(metrics) == {"validation", "test", "linear", "prior"}
    assert metrics["prior"]["roc_auc"] == 0.5
    assert metrics["test"]["prevalence"] == metrics["linear"]["prevalence"] == metrics["prior"]["prevalence"]


def test_threshold_is_the_cheapest_on_out_of_fold_rows(
    found: dict[str, Any], fitted: train.TrainedModels, params: Params
) -> None:
    costs, rows = params.evaluate.costs, train.build_out_of_fold_table(fitted)
    assert set(range(1500, 2200)) < set(rows["row"]), "the validation rows, and folds of the training rows"
    scores, labels = rows["answer_1"].to_numpy(), rows["truth"].to_numpy() == 1

    def cost(threshold: float) -> float:
        positive = scores >= threshold
        return float(
            costs.false_positive * (positive & ~labels).sum() + costs.false_negative * (~positive & labels).sum()
        )

    assert cost(found["threshold"]) <= min(cost(threshold) for threshold in np.linspace(0, 1, 101))


def test_slices_cover_all_rows_and_say_which_are_too_small(
    found: dict[str, Any], table: pl.DataFrame, params: Params
) -> None:
    slices = found["slices"]
    for column in params.evaluate.slices:
        counts = [part["rows"] for part in slices if part["column"] == column]
        assert sum(counts) == table[2200:].height
        assert counts == sorted(counts, reverse=True)
    assert all(part["enough"] == (part["rows"] >= params.evaluate.min_slice_rows) for part in slices)


def test_missing_values_are_a_slice_of_their_own(contract: Contract, params: Params) -> None:
    places = pl.DataFrame({"place": ["a", None, "a", None]})
    judged = params.evaluate.model_copy(update={"slices": ("place",)})
    found = evaluate.evaluate_slices(
        places, contract, np.array([1.0, 0.0, 0.0, 1.0]), np.full((4, 2), 0.5), DecisionRule(0.5), judged
    )
    assert [(part["value"], part["rows"]) for part in found] == [("(missing)", 2), ("a", 2)]


@pytest.mark.parametrize("kind", ["float", "datetime"])
def test_a_slice_over_a_column_of_numbers_or_moments_is_refused(
    table: pl.DataFrame, contract: Contract, params: Params, kind: str
) -> None:
    column = next((column for column in contract.columns if column.type == kind), None)
    if column is None:
        pytest.skip(f"the contract has no {kind} column")
    bent = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"slices": (column.name,)})})
    with pytest.raises(
        ConfigError, match=f"evaluate.slices: '{re.escape(column.name)}' is {kind}; slices need string or boolean"
    ):
        evaluate.evaluate({}, {"test": table}, contract, bent, [0.5, 0.5], pl.DataFrame())


def test_importance_names_every_input_and_finds_what_decides(
    found: dict[str, Any], fitted: train.TrainedModels, table: pl.DataFrame, contract: Contract
) -> None:
    losses = {point["column"]: point["loss"] for point in found["importance"]}
    assert set(losses) == {column.name for column in contract.inputs}
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    assert next(iter(losses)) in {column.name for column in rows.signal_columns(contract)}


def test_a_pipeline_that_was_changed_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.joblib"
    joblib.dump({"a": 1}, path)
    hashes = {path.name: sha256_file(path)}
    assert evaluate.load_pipeline(path, hashes) == {"a": 1}
    joblib.dump({"a": 2}, path)
    with pytest.raises(
        IntegrityError, match=r"is not the file that the train stage wrote; run `dvc repro --force train`"
    ):
        evaluate.load_pipeline(path, hashes)
