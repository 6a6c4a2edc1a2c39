"""Refits without features and with other hyperparameters find what is harmful, useless or better."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.features import Feature
from flywheel_ml.core.params import Params
from flywheel_ml.model.evaluation.ablation import Ablation, RefitResult, measure_ablation

CONTRACT = Contract(
    name="toy",
    columns=(
        Column(name="signal", type="float", nullable=True),
        Column(name="drifting", type="float"),
        Column(name="noise", type="string", categories=("a", "b", "c")),
        Column(name="late", type="boolean", role="target"),
    ),
)


def make_rows(n_rows: int, seed: int, leaks: bool) -> pl.DataFrame:
    """Rows whose column `drifting` equals the target in training only, as a leak does."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=n_rows)
    late = signal + rng.normal(size=n_rows) > 0
    drifting = late + rng.normal(scale=0.1, size=n_rows) if leaks else rng.normal(size=n_rows)
    noise = rng.choice(["a", "b", "c"], n_rows)
    return pl.DataFrame({"signal": signal, "drifting": drifting, "noise": noise, "late": late})


@pytest.fixture(scope="module")
def toy(params: Params) -> Params:
    split = params.split.model_copy(update={"by": "hash"})
    return params.model_copy(update={"split": split})


def ablate(
    params: Params, leaks: bool, weakest: Sequence[str] = (), features: Sequence[Feature] = (), **changes: Any
) -> Ablation:
    importance = [{"column": name, "loss": 1.0} for name in ("signal", "drifting", "noise")]
    importance = [{**one, "loss": -1.0} if one["column"] in weakest else one for one in importance]
    rows = make_rows(1500, 0, leaks), make_rows(1500, 1, False)
    return measure_ablation(*rows, CONTRACT, params.model_copy(update=changes), importance, features)


def test_column_that_misleads_is_harmful(toy: Params) -> None:
    found = ablate(toy, leaks=True, weakest=("drifting", "noise"))
    assert [one.name for one in found.without if one.is_better] == ["drifting"]
    assert found.importance == {"signal": 1.0, "drifting": -1.0, "noise": -1.0}


def test_signal_and_noise_are_not_harmful(toy: Params) -> None:
    found = ablate(toy, leaks=False)
    assert [one.name for one in found.without if one.is_better] == []
    without = {one.name: one.difference for one in found.without}
    assert without["signal"] > 0.1


def test_derived_feature_is_ablated_too(toy: Params) -> None:
    def halved(signal: np.ndarray) -> np.ndarray:
        return signal / 2

    assert "halved" in {one.name for one in ablate(toy, leaks=False, features=[halved]).without}


def test_untuned_configuration_loses_to_a_probe(toy: Params) -> None:
    """One leaf per row learns the noise by heart."""
    wild = toy.train.hist_gradient_boosting.model_copy(
        update={"min_samples_leaf": 1, "max_leaf_nodes": 400, "l2_regularization": 0.0, "learning_rate": 0.5}
    )
    train = toy.train.model_copy(update={"estimator": "hist_gradient_boosting", "hist_gradient_boosting": wild})
    assert any(one.is_better for one in ablate(toy, leaks=False, train=train).probes)


@pytest.mark.parametrize("estimator", ["logistic_regression", "random_forest", "mlp"])
def test_every_estimator_is_probed(toy: Params, estimator: str) -> None:
    found = ablate(toy, leaks=False, train=toy.train.model_copy(update={"estimator": estimator}))
    assert len(found.probes) == 3


def test_result_is_the_same_every_time(toy: Params) -> None:
    assert ablate(toy, leaks=False) == ablate(toy, leaks=False)


def test_difference_within_chance_decides_nothing() -> None:
    by_chance = RefitResult(name="x", whole=0.5, difference=-0.02, standard_error=0.01)
    assert not by_chance.is_better
    assert by_chance.model_copy(update={"standard_error": 0.005}).is_better
