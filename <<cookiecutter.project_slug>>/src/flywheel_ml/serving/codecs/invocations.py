"""The /invocations protocol of MLflow and SageMaker, in every form that MLflow's scoring server accepts."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from flywheel_ml.core.contract import Label
from flywheel_ml.serving.codecs.tabular import (
    build_field_problem,
    build_rows,
    check_row_limit,
    reject_duplicate_columns,
)
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.prediction.requests import Results
from flywheel_ml.serving.schema.documents import Variant
from flywheel_ml.utils.config_model import suggest

CSV = "text/csv"

Rows = list[dict[str, Any]]


class Split(BaseModel):
    """A pandas frame as `to_dict(orient="split")` returns it; the index is ignored."""

    model_config = ConfigDict(extra="forbid")

    columns: list[str]
    data: list[list[Any]]
    index: list[Any] | None = None


class Invocation(BaseModel):
    """One table in exactly one of four forms; values are as in JSON or as in the user's own table.

    `instances` and `inputs` are a list of rows, or an object of columns of equal length; `inputs` may also be one row.
    """

    model_config = ConfigDict(extra="forbid")

    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | dict[str, list[Any]] | None = None
    inputs: list[dict[str, Any]] | dict[str, Any] | None = None
    params: dict[str, Any] | None = Field(None, max_length=0, description="must be empty: the model has no parameters")


class Invoked(BaseModel):
    """The predictions in the order of the rows, in the target's type; send `ids` to /feedback.

    If several models answered, `model_versions` and `variants` name the model of each row.
    """

    predictions: list[Label | float]
    ids: list[str]
    model_version: str
    variant: Variant
    degraded: bool
    model_versions: list[str] | None = None
    variants: list[Variant] | None = None


class InvocationsCodec:
    """The `Codec` of one request.

    Args:
        kind: media type of the body.
    """

    def __init__(self, kind: str) -> None:
        self._is_csv = kind == CSV

    def decode(self, model: ServedModel, body: bytes) -> Rows:
        """Return the rows of a body; raises 400 if it is malformed, 422 if it breaks the contract."""
        return model.schema.validate_rows((_read_csv if self._is_csv else _read_json)(model, body))

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """Return the response of MLflow's own server, plus the ids of the predictions."""
        outputs = from_json(f"[{','.join(results.outputs)}]")
        each = {}
        if results.is_mixed:
            each["model_versions"] = [one.ref.version for one in results.models]
            each["variants"] = [one.variant for one in results.models]
        return to_json(
            {
                "predictions": [output["prediction"] for output in outputs],
                "ids": results.ids,
                "model_version": model.ref.version,
                "variant": model.variant,
                "degraded": results.is_degraded(model),
                **each,
            }
        )


def _read_json(model: ServedModel, body: bytes) -> list[Any]:
    try:
        content = from_json(body)
    except ValueError as error:
        raise validation_errors.build_malformed_problem("json", error) from None
    if not isinstance(content, dict):
        raise build_field_problem(None, f"must be an object with one of {', '.join(_READERS)}", value=content)
    if content.pop("params", None):
        raise build_field_problem("params", "the model has no parameters; leave `params` out")
    if strange := [name for name in content if name not in _READERS]:
        raise build_field_problem(strange[0], f"unknown member of the request; {suggest(strange[0], list(_READERS))}")
    if len(content) != 1:
        raise build_field_problem(None, f"must have exactly one of {', '.join(_READERS)}", value=content)
    ((name, table),) = content.items()
    rows = _READERS[name](name, table, model)
    check_row_limit(len(rows), name, model.schema)
    return rows


def _read_split(name: str, table: Any, model: ServedModel) -> Rows:
    if not isinstance(table, dict) or not {"columns", "data"} <= table.keys() <= {"columns", "data", "index"}:
        raise build_field_problem(name, "must be an object with columns, data and optionally index", value=table)
    columns, data = table["columns"], table["data"]
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise build_field_problem(name, "columns must be a list of names", value=columns)
    reject_duplicate_columns(columns)
    if not isinstance(data, list):
        raise build_field_problem(name, "data must be a list of rows", value=data)
    check_row_limit(len(data), name, model.schema)
    for at, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            raise build_field_problem(
                name, f"must have one value for each of the {len(columns)} columns", at, value=row
            )
    return [dict(zip(columns, row, strict=True)) for row in data]


def _read_records(name: str, table: Any, _: ServedModel) -> list[Any]:
    if not isinstance(table, list):
        raise build_field_problem(name, "must be a list of rows, each an object", value=table)
    return table


def _read_rows_or_columns(name: str, table: Any, model: ServedModel) -> list[Any]:
    if not isinstance(table, dict):
        return _read_records(name, table, model)
    if name == "inputs" and table and not any(isinstance(column, list) for column in table.values()):
        return [table]
    for column, values in table.items():
        if not isinstance(values, list):
            raise build_field_problem(column, "must be a list, as the other columns are", value=values)
    lengths = {len(values) for values in table.values()}
    if len(lengths) > 1:
        short = min(table, key=lambda column: len(table[column]))
        raise build_field_problem(short, f"has {min(lengths)} values where another column has {max(lengths)}")
    check_row_limit(max(lengths, default=0), name, model.schema)
    return build_rows(table)


_READERS: dict[str, Callable[[str, Any, ServedModel], list[Any]]] = {
    "dataframe_split": _read_split,
    "dataframe_records": _read_records,
    "instances": _read_rows_or_columns,
    "inputs": _read_rows_or_columns,
}


def _read_csv(model: ServedModel, body: bytes) -> Rows:
    try:
        lines = list(_limit_lines(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True), model))
    except (UnicodeDecodeError, csv.Error) as error:
        raise validation_errors.build_malformed_problem("csv", error) from None
    names, lines = (lines[0], lines[1:]) if lines else ([], [])
    reject_duplicate_columns(names)
    for at, line in enumerate(lines):
        if len(line) != len(names):
            raise build_field_problem(
                None, f"must have {len(names)} values, one for each name in the first line", at, value=line
            )
    return [dict(zip(names, line, strict=True)) for line in lines]


def _limit_lines(lines: Iterable[list[str]], model: ServedModel) -> Iterator[list[str]]:
    """Yield the lines that are not empty; raises 422 if there are too many."""
    for at, line in enumerate(line for line in lines if line):
        check_row_limit(at, "instances", model.schema)
        yield line
