"""Every estimator that params.yaml can name trains on this contract, and its ONNX model predicts as it does."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from flywheel_ml.core import bundle
from flywheel_ml.core.catalog import list_estimators
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.testing.bundles import make_bundle

from << cookiecutter.package_name >>.estimators import ESTIMATORS
from << cookiecutter.package_name >>.project import PROJECT


@pytest.mark.attack("estimator")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_trains_and_converts_to_onnx(
    name: str,
    tmp_path: Path,
    table: pl.DataFrame,
    contract: Contract,
    params: Params,
    record_property: Callable[[str, object], None],
) -> None:
    if name not in list_estimators(ESTIMATORS, contract.task):
        pytest.skip(f"not for {contract.task}")
    chosen = params.model_copy(update={"train": params.train.model_copy(update={"estimator": name})})
    path = make_bundle(tmp_path / "bundle", table.head(1000), contract, chosen, PROJECT.features)
    manifest = bundle.verify(path)
    assert manifest.estimator == name
    assert manifest.parity <= params.gates.parity_tolerance
    record_property(f"estimator {name}", manifest.parity)
