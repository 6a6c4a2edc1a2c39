"""MLflow's and SageMaker's protocol: /invocations, in every form that MLflow's scoring server takes."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from flywheel_ml.core.contract import Label
from flywheel_ml.serving.codecs.tabular import none_twice, not_too_many, refused, rows_of
from flywheel_ml.serving.errors import faults
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.prediction.requests import Results
from flywheel_ml.serving.schema.documents import Variant
from flywheel_ml.utils.config_model import suggest

CSV = "text/csv"

Rows = list[dict[str, Any]]


class Split(BaseModel):
    """A pandas frame as `to_dict(orient="split")` gives it; the index is not looked at."""

    model_config = ConfigDict(extra="forbid")

    columns: list[str]
    data: list[list[Any]]
    index: list[Any] | None = None


class Invocation(BaseModel):
    """One table in exactly one of four forms, its values as JSON or as the user's own table writes them.

    `instances` and `inputs` are a list of rows, or an object of columns of one length; `inputs` may also be one row.
    """

    model_config = ConfigDict(extra="forbid")

    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | dict[str, list[Any]] | None = None
    inputs: list[dict[str, Any]] | dict[str, Any] | None = None
    params: dict[str, Any] | None = Field(None, max_length=0, description="the model takes none")


class Invoked(BaseModel):
    """The predictions in the order of the rows, in the target's own type; `ids` are what /feedback asks for.

    Where several models answered, `model_versions` and `variants` name that of each row.
    """

    predictions: list[Label | float]
    ids: list[str]
    model_version: str
    variant: Variant
    degraded: bool
    model_versions: list[str] | None = None
    variants: list[Variant] | None = None


class Invocations:
    """The `Codec` of one request.

    Args:
        kind: the media type of its body.
    """

    def __init__(self, kind: str) -> None:
        self._is_csv = kind == CSV

    def decode(self, model: ServedModel, body: bytes) -> Rows:
        """The rows of a body; raises 400 where it cannot be read, 422 where it breaks the contract."""
        return model.schema.checked((_from_csv if self._is_csv else _from_json)(model, body))

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """What MLflow's own server would return, and the ids of the predictions."""
        told = from_json(f"[{','.join(results.outputs)}]")
        each = {}
        if results.is_mixed:
            each["model_versions"] = [one.ref.version for one in results.models]
            each["variants"] = [one.variant for one in results.models]
        return to_json(
            {
                "predictions": [one["prediction"] for one in told],
                "ids": results.ids,
                "model_version": model.ref.version,
                "variant": model.variant,
                "degraded": results.degraded(model),
                **each,
            }
        )


def _from_json(model: ServedModel, body: bytes) -> list[Any]:
    try:
        content = from_json(body)
    except ValueError as error:
        raise faults.malformed("json", error) from None
    if not isinstance(content, dict):
        raise refused(None, f"must be an object with one of {', '.join(_READ)}", value=content)
    if content.pop("params", None):
        raise refused("params", "the model takes none; leave them out")
    if strange := [name for name in content if name not in _READ]:
        raise refused(strange[0], f"unknown member of the request; {suggest(strange[0], list(_READ))}")
    if len(content) != 1:
        raise refused(None, f"must have exactly one of {', '.join(_READ)}", value=content)
    ((name, table),) = content.items()
    rows = _READ[name](name, table, model)
    not_too_many(len(rows), name, model.schema)
    return rows


def _split(name: str, table: Any, model: ServedModel) -> Rows:
    if not isinstance(table, dict) or not {"columns", "data"} <= table.keys() <= {"columns", "data", "index"}:
        raise refused(name, "must be an object of columns, data and, if you like, index", value=table)
    columns, data = table["columns"], table["data"]
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise refused(name, "columns must be a list of names", value=columns)
    none_twice(columns)
    if not isinstance(data, list):
        raise refused(name, "data must be a list of rows", value=data)
    not_too_many(len(data), name, model.schema)
    for at, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            raise refused(name, f"must have one value for each of the {len(columns)} columns", at, value=row)
    return [dict(zip(columns, row, strict=True)) for row in data]


def _records(name: str, table: Any, _: ServedModel) -> list[Any]:
    if not isinstance(table, list):
        raise refused(name, "must be a list of rows, each an object", value=table)
    return table


def _rows_or_columns(name: str, table: Any, model: ServedModel) -> list[Any]:
    if not isinstance(table, dict):
        return _records(name, table, model)
    if name == "inputs" and table and not any(isinstance(column, list) for column in table.values()):
        return [table]
    for column, values in table.items():
        if not isinstance(values, list):
            raise refused(column, "must be a list, as the other columns are", value=values)
    lengths = {len(values) for values in table.values()}
    if len(lengths) > 1:
        short = min(table, key=lambda column: len(table[column]))
        raise refused(short, f"has {min(lengths)} values where another column has {max(lengths)}")
    not_too_many(max(lengths, default=0), name, model.schema)
    return rows_of(table)


_READ: dict[str, Callable[[str, Any, ServedModel], list[Any]]] = {
    "dataframe_split": _split,
    "dataframe_records": _records,
    "instances": _rows_or_columns,
    "inputs": _rows_or_columns,
}


def _from_csv(model: ServedModel, body: bytes) -> Rows:
    try:
        lines = list(_capped(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True), model))
    except (UnicodeDecodeError, csv.Error) as error:
        raise faults.malformed("csv", error) from None
    names, lines = (lines[0], lines[1:]) if lines else ([], [])
    none_twice(names)
    for at, line in enumerate(lines):
        if len(line) != len(names):
            raise refused(None, f"must have {len(names)} values, as the first line has names", at, value=line)
    return [dict(zip(names, line, strict=True)) for line in lines]


def _capped(lines: Iterable[list[str]], model: ServedModel) -> Iterator[list[str]]:
    """Lines that are not empty; raises 422 once there are too many."""
    for at, line in enumerate(line for line in lines if line):
        not_too_many(at, "instances", model.schema)
        yield line
