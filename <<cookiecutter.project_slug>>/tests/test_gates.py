"""The gates of the project: a model that learned passes them, and a model that learned nothing does not."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flywheel_ml.core import bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.params import Params
from flywheel_ml.model.evaluation import gate
from flywheel_ml.model.evaluation.measure import measure_candidate
from flywheel_ml.testing.bundles import make_bundle

from << cookiecutter.package_name >>.gates import GATES
from << cookiecutter.package_name >>.project import PROJECT


def judged(path: Path, columns: Columns, params: Params) -> dict[str, gate.GateResult]:
    """The answer of every gate on a bundle, by name."""
    opened = bundle.Bundle.open(path, features=PROJECT.features)
    few = {name: values[:20] for name, values in columns.items()}
    candidate = gate.Candidate(opened.manifest, **measure_candidate(opened, few, params.evaluate))
    return {check.gate: check for check in gate.check_gates(candidate, params.gates, GATES)}


def test_every_gate_measures_the_model_and_gives_its_reason(
    bundle_path: Path, columns: Columns, params: Params
) -> None:
    found = judged(bundle_path, columns, params)
    assert set(found) == set(GATES)
    assert [check for check in found.values() if not check.reason or "not measured" in check.reason] == []


def test_model_that_learned_beats_the_class_prior(bundle_path: Path, columns: Columns, params: Params) -> None:
    check = judged(bundle_path, columns, params)["better than the class prior"]
    assert check.passed, check.reason


@pytest.mark.attack("nothing to learn")
def test_model_that_learned_nothing_is_refused(
    tmp_path: Path, table: pl.DataFrame, columns: Columns, contract: Contract, params: Params
) -> None:
    """Its labels are shuffled, so the inputs tell nothing about them."""
    order = np.random.default_rng(0).permutation(table.height)
    target = contract.target.name
    noise = table.with_columns(table[target][order].alias(target)).head(1000)
    path = make_bundle(tmp_path / "bundle", noise, contract, params, PROJECT.features)
    assert not judged(path, columns, params)["better than the class prior"].passed


@pytest.mark.attack("forbidden column")
def test_model_with_a_forbidden_column_is_refused(
    bundle_path: Path, columns: Columns, params: Params, contract: Contract
) -> None:
    assert judged(bundle_path, columns, params)["only permitted columns"].passed
    forbidding = params.gates.model_copy(update={"forbidden_columns": (contract.inputs[0].name,)})
    strict = params.model_copy(update={"gates": forbidding})
    assert not judged(bundle_path, columns, strict)["only permitted columns"].passed


@pytest.mark.attack("gate")
@pytest.mark.parametrize(
    ("threshold", "value", "gate_name"),
    [
        pytest.param("max_feature_us", 0.0, "cost of every feature", marks=pytest.mark.attack("slow feature")),
        ("max_latency_ms", 0.0, "single-row latency"),
        ("max_size_mb", 0.0, "bundle size"),
        ("parity_tolerance", -1.0, "same answers as scikit-learn"),
    ],
)
def test_gate_blocks_beyond_its_threshold(
    bundle_path: Path, columns: Columns, params: Params, threshold: str, value: float, gate_name: str
) -> None:
    assert judged(bundle_path, columns, params)[gate_name].passed
    strict = params.model_copy(update={"gates": params.gates.model_copy(update={threshold: value})})
    assert not judged(bundle_path, columns, strict)[gate_name].passed
