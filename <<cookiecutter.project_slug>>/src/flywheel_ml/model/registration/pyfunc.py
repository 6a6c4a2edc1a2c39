"""The bundle as a stock MLflow model, so that `mlflow.pyfunc.load_model` works on it anywhere."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import polars as pl
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Columns, Contract
from flywheel_ml.core.features import Feature
from flywheel_ml.data import tables
from flywheel_ml.utils.errors import DataError

LIBRARY = Path(__file__).parents[2]
_TYPES = {
    "float": DataType.double,
    "integer": DataType.long,
    "string": DataType.string,
    "boolean": DataType.boolean,
    "datetime": DataType.datetime,
}


class BundleModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """MLflow model that loads the bundle stored next to it; it has no pickled state.

    Args:
        features: the features of the project that trained it.
    """

    def __init__(self, features: Sequence[Feature] = ()) -> None:
        self._features = features

    def load_context(self, context: Any) -> None:
        """Verify and open the bundle; warn if this process has another version of the library than the model."""
        path = Path(context.artifacts["bundle"])
        _warn_of_other_library(path.parents[1] / "code" / LIBRARY.name)
        self._bundle = Bundle.open(path, features=self._features)

    # MLflow requires these names.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002
        """Predict a frame of n_rows × contract columns.

        Returns:
            Frame of n_rows: `prediction`; for two classes the `probability` of the positive one, for more that of the
            likeliest; for numbers the interval's `low` and `high`.

        Raises:
            DataError: a column is missing, or a cell is invalid under the contract.
        """
        columns = _to_columns(model_input, self._bundle.contract)
        answer = self._bundle.predict(columns)
        extra = (
            {"low": answer.output[:, 1], "high": answer.output[:, 2]}
            if self._bundle.manifest.task == "regression"
            else {"probability": answer.scores}
        )
        return pd.DataFrame({"prediction": answer.values, **extra}, index=model_input.index)


def _warn_of_other_library(shipped: Path) -> None:
    """Python imports a package once, so the first model that a process loads brings the library for all of them."""
    if shipped.is_dir() and not shipped.samefile(LIBRARY) and _hash_code(shipped) != _hash_code(LIBRARY):
        warnings.warn(
            f"this process has imported {LIBRARY.name} from {LIBRARY}, and the model was registered with another "
            "version of it; load models of two projects, or of two versions, in processes of their own",
            UserWarning,
            stacklevel=2,
        )


def _hash_code(package: Path) -> str:
    """sha256 of the names and contents of a package's modules."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def _to_columns(model_input: pd.DataFrame, contract: Contract) -> Columns:
    """Read the inputs from a pandas frame as the contract specifies."""
    frame = tables.conform(pl.from_pandas(model_input.reset_index(drop=True)), contract)
    for column in contract.inputs:
        if column.name not in frame.columns:
            if not column.nullable:
                raise DataError(f"the frame has no column '{column.name}'")
            frame = frame.with_columns(pl.lit(None, tables.DTYPES[column.type]).alias(column.name))
        elif (wrong := tables.find_misfits(frame[column.name], column)).any():
            row = wrong.arg_true()[0]
            cell = frame[column.name][row]
            raise DataError(f"column '{column.name}', row {row:,}: {cell!r} {tables.describe_misfit(cell, column)}")
    return tables.to_columns(frame, contract.inputs)


def build_signature(contract: Contract) -> ModelSignature:
    """Build MLflow's schema from the input columns of the contract."""
    return ModelSignature(inputs=Schema([_to_column_spec(column) for column in contract.inputs]))


def _to_column_spec(column: Column) -> ColSpec:
    # pandas stores integers with gaps as floats.
    kind = DataType.double if column.type == "integer" and column.nullable else _TYPES[column.type]
    return ColSpec(kind, name=column.name, required=not column.nullable)
