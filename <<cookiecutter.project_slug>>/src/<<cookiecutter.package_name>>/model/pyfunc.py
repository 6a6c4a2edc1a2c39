"""The bundle as a stock MLflow model, so that `mlflow.pyfunc.load_model` works on it anywhere."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from ..bundle import Bundle
from ..contract import Column, Contract, from_rows

_TYPES = {
    "float": DataType.double,
    "integer": DataType.long,
    "string": DataType.string,
    "boolean": DataType.boolean,
    "datetime": DataType.datetime,
}


class BundleModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Loads the bundle beside it; its own code holds nothing to unpickle."""

    def load_context(self, context: Any) -> None:
        """Verify and open the bundle."""
        self._bundle = Bundle.open(Path(context.artifacts["bundle"]))

    # MLflow goes by these names.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002
        """Predict a frame of n_rows × contract columns.

        Returns:
            Frame of n_rows: `prediction`; for two classes the `probability` of the positive one, for more that of the
            likeliest; for numbers the interval's `low` and `high`.
        """
        frame = model_input.astype(object).where(model_input.notna(), None)
        records: list[dict[str, Any]] = frame.to_dict(orient="records")  # type: ignore[assignment]
        columns = from_rows(self._bundle.contract.inputs, records)
        answer = self._bundle.predict(columns)
        beside = (
            {"low": answer.output[:, 1], "high": answer.output[:, 2]}
            if self._bundle.manifest.task == "regression"
            else {"probability": answer.scores}
        )
        return pd.DataFrame({"prediction": answer.values, **beside}, index=model_input.index)


def signature(contract: Contract) -> ModelSignature:
    """The contract's input columns as MLflow's schema."""
    return ModelSignature(inputs=Schema([_spec(column) for column in contract.inputs]))


def _spec(column: Column) -> ColSpec:
    # A pandas column of integers with gaps is one of floats.
    kind = DataType.double if column.type == "integer" and column.nullable else _TYPES[column.type]
    return ColSpec(kind, name=column.name, required=not column.nullable)
