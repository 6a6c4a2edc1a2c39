"""The stock MLflow model answers with the bundle's own bits, gaps and timestamps included."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.model.registration.pyfunc import LIBRARY, BundleModel
from flywheel_ml.utils.errors import DataError, IntegrityError
from library.helpers import bundles


@pytest.fixture
def frame(table: pl.DataFrame, contract: Contract) -> pd.DataFrame:
    """As a person would hold it in pandas: floats for integers with gaps, NaN and NaT for what is missing."""
    return pd.DataFrame(
        {column.name: table[column.name].to_numpy(allow_copy=True) for column in contract.inputs},
        index=pd.RangeIndex(7, 7 + table.height),
    )


def test_the_stock_model_answers_with_the_bundles_bits(
    bundle_path: Path, frame: pd.DataFrame, columns: Columns
) -> None:
    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle_path)}))
    found = model.predict(None, frame)
    ours = Bundle.open(bundle_path).predict(columns)
    assert bundles.same_bits(found["probability"].to_numpy(), ours.scores)
    assert (found["prediction"].to_numpy() == ours.values).all()
    assert found.index.equals(frame.index)


def test_pyfunc_reads_cells_as_the_contract_says(bundle_path: Path, frame: pd.DataFrame, columns: Columns) -> None:
    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle_path)}))
    written = frame.assign(carrier=" " + frame["carrier"] + " ", distance=frame["distance"].astype(str))
    found = model.predict(None, written)
    assert bundles.same_bits(found["probability"].to_numpy(), Bundle.open(bundle_path).predict(columns).scores)
    with pytest.raises(DataError, match="column 'distance', row 0: 'far' must be a"):
        model.predict(None, frame.assign(distance="far"))
    with pytest.raises(DataError, match="no column 'carrier'"):
        model.predict(None, frame.drop(columns="carrier"))


def test_the_stock_model_refuses_a_tampered_bundle(bundle_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_path, tmp_path / "bundle")
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityError, match=r"model.onnx was changed after its manifest was written"):
        BundleModel().load_context(SimpleNamespace(artifacts={"bundle": str(copy)}))


def test_model_of_other_library_version_loads_with_a_warning(bundle_path: Path, tmp_path: Path) -> None:
    """As MLflow lays a model out: artifacts/bundle and code/flywheel_ml."""
    bundle = Path(shutil.copytree(bundle_path, tmp_path / "artifacts" / "bundle"))
    shipped = tmp_path / "code" / LIBRARY.name
    shutil.copytree(LIBRARY, shipped, ignore=shutil.ignore_patterns("__pycache__"))
    context = SimpleNamespace(artifacts={"bundle": str(bundle)})
    BundleModel().load_context(context)
    module = shipped / "utils" / "formatting.py"
    module.write_text(module.read_text() + "\n# newer\n")
    with pytest.warns(UserWarning, match="load models of two projects, or of two versions, in processes of their own"):
        BundleModel().load_context(context)
