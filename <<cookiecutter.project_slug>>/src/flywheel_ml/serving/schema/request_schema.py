"""What a request may hold, compiled from the contract."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import AfterValidator, ConfigDict, FailFast, Field, TypeAdapter, ValidationError

# Python 3.11's own TypedDict cannot carry the configuration that pydantic reads.
from typing_extensions import TypedDict

from flywheel_ml.core.contract import MISSING, Column, Contract, parse_timestamp, to_naive_utc
from flywheel_ml.core.parsing import build_grammar
from flywheel_ml.core.parsing.grammar import clean_text
from flywheel_ml.core.parsing.rules import build_value_rules
from flywheel_ml.core.profile import Counts, Profile
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.schema.row_validator import RowValidator, build_cell_reader
from flywheel_ml.utils import timestamps

MAX_LABELS = 10_000
MAX_CLOCK_SKEW = timedelta(minutes=1)
"""How far ahead of this machine's clock a client's may be."""
EXAMPLE_DATETIME = "2013-06-15T08:30:00"
LOCAL_DATETIME = (
    "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?$"
)

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_NOT_RESERVED: dict[str, Any] = {"not": {"enum": ["", MISSING]}}


class Schema:
    """The request model of one contract. Rows are plain dicts, so a column may have any name.

    A request in the form that the description asks for is checked by pydantic alone. Whatever does not pass is read
    again, as the user's own table might have written it, by a `RowValidator`, which also finds the words for a refusal.

    Args:
        contract: what a row is.
        profile: the reference rows, from which a typical one becomes the example.
        max_instances: most instances in one request.
        optional: names of input columns that may be missing although the contract does not call them nullable.
    """

    def __init__(
        self, contract: Contract, profile: Profile, max_instances: int, optional: Collection[str] = ()
    ) -> None:
        self.max_instances = max_instances
        self.example = {
            column.name: _find_typical_value(column, profile.columns[column.name]) for column in contract.inputs
        }
        self.row_validator = RowValidator(contract, optional)
        self._read_label = build_cell_reader(contract.target, required=True)
        instance = _build_instance(self.row_validator, self.example)
        self.predict_request = _build_request("PredictRequest", "instances", instance, max_instances)
        self.explain_request = _build_request("ExplainRequest", "instances", instance, 1)
        label = _build_label(_build_type(contract.target))
        self.feedback_request = _build_request("FeedbackRequest", "labels", label, MAX_LABELS)
        self._predict = _ItemList("instances", instance, Any, max_instances)
        self._explain = _ItemList("instances", instance, Any, 1)
        self._feedback = _ItemList("labels", label, _build_label(Any), MAX_LABELS, ("id", "label", "at"))

    def parse_instances(self, body: bytes) -> list[dict[str, Any]]:
        """The instances of a /predict body.

        Raises:
            Problem: 400 when it is no JSON, 422 when it breaks the contract.
        """
        rows, is_checked = self._predict.read(body)
        return rows if is_checked else self.row_validator.validate(rows)

    def validate_rows(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Rows that are Python values already, as `parse_instances` would have read them; raises 422 as it does."""
        rows, is_checked = self._predict.read(rows)
        return rows if is_checked else self.row_validator.validate(rows)

    def parse_instance(self, body: bytes) -> dict[str, Any]:
        """The one instance of an /explain body; raises as `parse_instances`."""
        rows, is_checked = self._explain.read(body)
        (row,) = rows if is_checked else self.row_validator.validate(rows)
        return row

    def parse_labels(self, body: bytes) -> list[dict[str, Any]]:
        """The labels of a /feedback body, each with `id`, `label` and perhaps `at`; raises as `parse_instances`."""
        rows, is_checked = self._feedback.read(body)
        return rows if is_checked else self._read_labels(rows)

    def _read_labels(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[validation_errors.ErrorDetail] = []
        read = []
        for at, row in enumerate(rows):
            try:
                read.append({**row, "label": self._read_label(row["label"])})
            except ValueError as error:
                found.append(validation_errors.build_error_detail("label", str(error), at, value=row["label"]))
        if found:
            raise validation_errors.build_invalid_input_problem(
                len(found), found[: validation_errors.MAX_LISTED_ERRORS]
            )
        return read


class _ItemList:
    """A list of items under one name: in the form that is described, or in one that only says what an item is.

    Args:
        name: what the list is called.
        described: the type of an item as it is described.
        any_item: a type that every item has whose values are still to be read.
        most: most items.
        members: what an item may have, where that does not depend on the contract.
    """

    def __init__(self, name: str, described: Any, any_item: Any, most: int, members: Sequence[str] = ()) -> None:
        self._name = name
        self._members = members
        # The first fault is enough to know that there is one.
        self._described: TypeAdapter[Any] = TypeAdapter(
            _build_request("Described", name, described, most, fails_fast=True)
        )
        self._any: TypeAdapter[Any] = TypeAdapter(_build_request("Any", name, any_item, most, fails_fast=True))

    def read(self, asked: bytes | list[Any]) -> tuple[list[Any], bool]:
        """The items of a body, or those given, and whether their values are checked; raises 400 or 422."""
        try:
            return self._validate(self._described, asked), True
        except ValidationError:
            pass
        try:
            return self._validate(self._any, asked), False
        except ValidationError as error:
            raise validation_errors.build_problem(error, self._members) from None

    def _validate(self, form: TypeAdapter[Any], asked: bytes | list[Any]) -> list[Any]:
        whole = form.validate_json(asked) if isinstance(asked, bytes) else form.validate_python({self._name: asked})
        items: list[Any] = whole[self._name]
        return items


def _build_request(name: str, field: str, item: Any, most: int, fails_fast: bool = False) -> Any:
    bounds: list[Any] = [Field(min_length=1, max_length=most), *([FailFast()] if fails_fast else [])]
    items = Annotated[(list[item], *bounds)]
    return _build_typed_dict(name, {field: items})


def _build_typed_dict(name: str, fields: Mapping[str, Any]) -> Any:
    typed_dict: Any = TypedDict  # Type checkers follow only literal ones.
    made = typed_dict(name, dict(fields))
    made.__pydantic_config__ = _CLOSED
    return made


def _build_instance(reader: RowValidator, example: Mapping[str, Any]) -> Any:
    fields = {
        name: _build_field(column, name not in reader.required, example.get(name))
        for name, column in reader.columns.items()
    }
    return _build_typed_dict("Instance", fields)


def _build_label(label: Any) -> Any:
    told = Field(description="when it turned out; now if left out", json_schema_extra={"format": "date-time"})
    at = NotRequired[Annotated[str, AfterValidator(_check_past), told]]
    return _build_typed_dict(
        "Label", {"id": Annotated[str, Field(min_length=1, max_length=64)], "label": label, "at": at}
    )


def _build_field(column: Column, optional: bool, example: Any = None) -> Any:
    unit = f" [{column.unit}]" if column.unit else ""
    told = (f"{column.description}{unit}".strip(), _describe_datetime(column) if column.type == "datetime" else "")
    facts: dict[str, Any] = {"description": "; ".join(filter(None, told)) or None}
    if example is not None:
        facts["examples"] = [example]
    typed = _build_type(column)
    return NotRequired[Annotated[typed | None, Field(**facts)]] if optional else Annotated[typed, Field(**facts)]


def _build_type(column: Column) -> Any:
    """The type of a column's values in the form that is described; `build_cell_reader` leaves what passes as it is."""
    limits = {rule.kind: rule.limit for rule in build_value_rules(column)}
    sentinels = build_grammar(column).sentinels
    if "categories" in limits:
        return Literal[limits["categories"]]
    if column.type in ("float", "integer"):
        low, high = limits["range"]
        number: Any = Annotated[float if column.type == "float" else int, Field(ge=low, le=high)]
        return Annotated[number, _reject_sentinels(sentinels)] if sentinels else number
    if column.type == "boolean":
        return bool
    if column.type == "datetime":
        return Annotated[str, _check_plain_datetime(sentinels), Field(json_schema_extra=_build_datetime_schema(column))]
    pattern = r"^[^\x00]*$" if "null_character" in limits else None
    text = Annotated[str, Field(max_length=limits.get("length"), pattern=pattern)]
    return Annotated[text, _check_plain_text(column), Field(json_schema_extra=_NOT_RESERVED)]


def _describe_datetime(column: Column) -> str:
    if _accepts_offsets(column):
        return f"date and time; without an offset it is meant in {column.time_zone}"
    dropped = "; an offset is dropped" if column.time_zone else ""
    return f"local date and time without an offset, such as {EXAMPLE_DATETIME}{dropped}"


def _build_datetime_schema(column: Column) -> dict[str, Any]:
    # Clients that are generated from the description send an offset with a `date-time`.
    return {"format": "date-time"} if _accepts_offsets(column) else {"pattern": LOCAL_DATETIME}


def _accepts_offsets(column: Column) -> bool:
    return column.time_zone not in ("", "local")


def _reject_sentinels(sentinels: Collection[Any]) -> AfterValidator:
    def check(value: float) -> float:
        if value in sentinels:
            raise ValueError
        return value

    return AfterValidator(check)


def _check_plain_datetime(sentinels: Collection[Any]) -> AfterValidator:
    def check(text: str) -> str:
        if (value := timestamps.parse_isoformat(text)) is None or (sentinels and value in sentinels):
            raise ValueError
        return text

    return AfterValidator(check)


def _check_plain_text(column: Column) -> AfterValidator:
    known, missing = frozenset(column.categories or ()), frozenset(("", MISSING, *column.parse.na_values))
    code_width = build_grammar(column).code_width

    def check(text: str) -> str:
        if text not in known and (
            text in missing or clean_text(text) != text or (len(text) < code_width and text.isdecimal())
        ):
            raise ValueError
        return text

    return AfterValidator(check)


def _check_past(text: str) -> str:
    if parse_timestamp(text) > to_naive_utc(datetime.now(UTC)) + MAX_CLOCK_SKEW:
        raise ValueError("must not be in the future")
    return text


def _find_typical_value(column: Column, counts: Counts) -> Any:
    """A JSON value from the middle of the reference rows; None where they have none."""
    if not counts.present:
        return None
    if column.free_text:
        return "a few words"
    if counts.kind == "categorical":
        mode = counts.categories[int(np.argmax(counts.counts))]
        return mode == "true" if column.type == "boolean" else mode
    counts = counts.merge_bins()
    at = int(np.searchsorted(np.cumsum(counts.counts), counts.present / 2))
    median = counts.edges[min(at, len(counts.edges) - 1)]
    if column.type == "datetime":
        return (datetime(1970, 1, 1) + timedelta(seconds=median)).isoformat()
    return round(median) if column.type == "integer" else median
