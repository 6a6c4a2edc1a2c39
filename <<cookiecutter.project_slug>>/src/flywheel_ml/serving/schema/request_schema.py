"""Request schemas, compiled from the contract."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import AfterValidator, ConfigDict, Discriminator, FailFast, Field, Tag, TypeAdapter, ValidationError

# Python 3.11's own TypedDict cannot carry the configuration that pydantic reads.
from typing_extensions import TypedDict

from flywheel_ml.core.business_metrics import MAX_VALUE, METRIC_NAME, find_name_fault
from flywheel_ml.core.contract import MISSING, Column, Contract, parse_timestamp, to_naive_utc
from flywheel_ml.core.parsing import build_grammar
from flywheel_ml.core.parsing.grammar import clean_text
from flywheel_ml.core.parsing.rules import build_value_rules
from flywheel_ml.core.profile import Counts, Profile
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.schema.row_validator import RowValidator, build_cell_reader
from flywheel_ml.utils import timestamps

MAX_LABELS = 10_000
LABEL_FIELDS = ("id", "label", "at", "entity", "timestamp", "metric", "value")
MAX_CLOCK_SKEW = timedelta(minutes=1)
"""How far a client's clock may be ahead of this machine's."""
EXAMPLE_DATETIME = "2013-06-15T08:30:00"
LOCAL_DATETIME = (
    "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?$"
)

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_NOT_RESERVED: dict[str, Any] = {"not": {"enum": ["", MISSING]}}


class Schema:
    """The request model of one contract. Rows are plain dicts, so a column may have any name.

    The fast path validates a request with pydantic alone, in the form that the OpenAPI document describes. A request
    that fails is read again by a `RowValidator`, which accepts values as the user's own table writes them. The
    `RowValidator` also writes the error messages.

    Args:
        contract: columns of a row.
        profile: the reference rows; a typical row becomes the example.
        max_instances: maximum instances in one request.
        optional: names of input columns that may be missing although they are not nullable in the contract.
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
        self._feedback = _ItemList("labels", label, _build_label(Any), MAX_LABELS, LABEL_FIELDS)

    def parse_instances(self, body: bytes) -> list[dict[str, Any]]:
        """Return the instances of a /predict body.

        Raises:
            Problem: 400 if it is not JSON, 422 if it breaks the contract.
        """
        rows, is_checked = self._predict.read(body)
        return rows if is_checked else self.row_validator.validate(rows)

    def validate_rows(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Validate rows of Python values; returns and raises the same as `parse_instances`."""
        rows, is_checked = self._predict.read(rows)
        return rows if is_checked else self.row_validator.validate(rows)

    def parse_instance(self, body: bytes) -> dict[str, Any]:
        """Return the one instance of an /explain body; raises like `parse_instances`."""
        rows, is_checked = self._explain.read(body)
        (row,) = rows if is_checked else self.row_validator.validate(rows)
        return row

    def parse_labels(self, body: bytes) -> list[dict[str, Any]]:
        """Return the labels of a /feedback body.

        Each has `id`, `label` and optionally `at`; or `entity`, `label`, `timestamp`; or `id`, `metric`, `value` and
        optionally `at`. Raises like `parse_instances`.
        """
        rows, is_checked = self._feedback.read(body)
        return rows if is_checked else self._read_labels(rows)

    def _read_labels(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[validation_errors.ErrorDetail] = []
        read = []
        for at, row in enumerate(rows):
            try:
                read.append(row if "metric" in row else {**row, "label": self._read_label(row["label"])})
            except ValueError as error:
                found.append(validation_errors.build_error_detail("label", str(error), at, value=row["label"]))
        if found:
            raise validation_errors.build_invalid_input_problem(
                len(found), found[: validation_errors.MAX_LISTED_ERRORS]
            )
        return read


class _ItemList:
    """Parses a named list of items, in the documented form or in a loose form whose values are read later.

    Args:
        name: of the list.
        described: type of an item in the documented form.
        any_item: type of an item in the loose form.
        most: maximum number of items.
        members: allowed members of an item, if they do not depend on the contract.
    """

    def __init__(self, name: str, described: Any, any_item: Any, most: int, members: Sequence[str] = ()) -> None:
        self._name = name
        self._members = members
        # Stops at the first error, because the slower reader lists the errors.
        self._described: TypeAdapter[Any] = TypeAdapter(
            _build_request("Described", name, described, most, fails_fast=True)
        )
        self._any: TypeAdapter[Any] = TypeAdapter(_build_request("Any", name, any_item, most, fails_fast=True))

    def read(self, content: bytes | list[Any]) -> tuple[list[Any], bool]:
        """Return the items of a body or list, and whether their values are validated; raises 400 or 422."""
        try:
            return self._validate(self._described, content), True
        except ValidationError:
            pass
        try:
            return self._validate(self._any, content), False
        except ValidationError as error:
            raise validation_errors.build_problem(error, self._members) from None

    def _validate(self, form: TypeAdapter[Any], content: bytes | list[Any]) -> list[Any]:
        whole = (
            form.validate_json(content) if isinstance(content, bytes) else form.validate_python({self._name: content})
        )
        items: list[Any] = whole[self._name]
        return items


def _build_request(name: str, field: str, item: Any, most: int, fails_fast: bool = False) -> Any:
    bounds: list[Any] = [Field(min_length=1, max_length=most), *([FailFast()] if fails_fast else [])]
    items = Annotated[(list[item], *bounds)]
    return _build_typed_dict(name, {field: items})


def _build_typed_dict(name: str, fields: Mapping[str, Any]) -> Any:
    typed_dict: Any = TypedDict  # Type checkers understand only literal field names.
    created = typed_dict(name, dict(fields))
    created.__pydantic_config__ = _CLOSED
    return created


def _build_instance(reader: RowValidator, example: Mapping[str, Any]) -> Any:
    fields = {
        name: _build_field(column, name not in reader.required, example.get(name))
        for name, column in reader.columns.items()
    }
    return _build_typed_dict("Instance", fields)


def _build_label(label: Any) -> Any:
    """Build the type of a label: of a prediction, of an entity at a time, or the value of a business metric."""
    when: dict[str, Any] = {"format": "date-time"}
    at = Field(description="timestamp of the outcome; default: now", json_schema_extra=when)
    timestamp = Field(description="timestamp of the outcome; in UTC without an offset", json_schema_extra=when)
    own = {
        "id": Annotated[str, Field(min_length=1, max_length=64)],
        "at": NotRequired[Annotated[str, AfterValidator(_check_past), at]],
    }
    name = Field(pattern=METRIC_NAME, description="name of a business metric, such as revenue")
    number = Field(ge=-MAX_VALUE, le=MAX_VALUE, description="its value for this prediction")
    of_metric = {
        **own,
        "metric": Annotated[str, name, AfterValidator(_check_metric)],
        "value": Annotated[float, number],
    }
    text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
    of_entity = {
        "entity": Annotated[text | int, Field(description="value of the contract's id column")],
        "label": label,
        "timestamp": Annotated[str, AfterValidator(_check_past), timestamp],
    }
    by_id, by_entity, by_metric = validation_errors.LABEL_TAGS

    def choose(item: Any) -> str:
        if not isinstance(item, dict):
            return by_id
        return by_metric if "metric" in item else by_entity if "entity" in item else by_id

    return Annotated[
        Annotated[_build_typed_dict("Label", {**own, "label": label}), Tag(by_id)]
        | Annotated[_build_typed_dict("EntityLabel", of_entity), Tag(by_entity)]
        | Annotated[_build_typed_dict("MetricValue", of_metric), Tag(by_metric)],
        Discriminator(choose),
    ]


def _build_field(column: Column, optional: bool, example: Any = None) -> Any:
    unit = f" [{column.unit}]" if column.unit else ""
    texts = (f"{column.description}{unit}".strip(), _describe_datetime(column) if column.type == "datetime" else "")
    facts: dict[str, Any] = {"description": "; ".join(filter(None, texts)) or None}
    if example is not None:
        facts["examples"] = [example]
    typed = _build_type(column)
    return NotRequired[Annotated[typed | None, Field(**facts)]] if optional else Annotated[typed, Field(**facts)]


def _build_type(column: Column) -> Any:
    """Return the type of a column's values in the documented form; cell readers do not change values that pass."""
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
        return f"date and time; without an offset it is in the time zone {column.time_zone}"
    dropped = "; an offset is dropped" if column.time_zone else ""
    return f"local date and time without an offset, such as {EXAMPLE_DATETIME}{dropped}"


def _build_datetime_schema(column: Column) -> dict[str, Any]:
    # Clients generated from the OpenAPI document send an offset with a `date-time`.
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


def _check_metric(name: str) -> str:
    if fault := find_name_fault(name):
        raise ValueError(fault)
    return name


def _check_past(text: str) -> str:
    if parse_timestamp(text) > to_naive_utc(datetime.now(UTC)) + MAX_CLOCK_SKEW:
        raise ValueError("must not be in the future")
    return text


def _find_typical_value(column: Column, counts: Counts) -> Any:
    """Return the median or mode of the reference rows as a JSON value; None if they have no value."""
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
