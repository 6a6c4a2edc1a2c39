"""What a request may hold, made from the contract, and what an answer holds."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, TypeAdapter, ValidationError

# Python 3.11's own TypedDict cannot carry the configuration that pydantic reads.
from typing_extensions import TypedDict

from ..contract import MISSING, Column, Contract, Label, moment, naive
from ..explanation import Explanation
from ..profile import Counts, Profile
from . import faults
from .problems import Problem

MAX_LABELS = 10_000
MAX_TEXT = 10_000
"""Most characters of one text."""
CLOCKS_APART = timedelta(minutes=1)
"""How far ahead of this machine's clock a client's may be."""
RESERVED = "is reserved for missing values; leave the field out, or send null, where there is none"

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


Variant = Literal["champion", "challenger", "fallback"]


class Answer(BaseModel):
    """One prediction: `id` is what /feedback asks for.

    Of classes, `probabilities` has a number in [0, 1] for each; of a number, `interval` has the ends between which it
    lies at the level that the model card states. Where several models answered one request, each prediction names
    its own.
    """

    id: str
    prediction: Label | float
    probabilities: dict[str, float] | None = None
    interval: tuple[float, float] | None = None
    model_version: str | None = None
    variant: Variant | None = None


class Answers(BaseModel):
    """The predictions of a request, in the order of its instances; `degraded` if a stand-in answered one of them."""

    predictions: list[Answer]
    model_version: str
    variant: Variant
    degraded: bool


class Explanations(BaseModel):
    """The explanation of a request's one instance, by the model that answers now."""

    explanations: list[Explanation]
    model_version: str
    variant: Variant
    degraded: bool


class Accepted(BaseModel):
    """How many labels are in the log now: new ones, and repeated ones that were there already."""

    accepted: int


class ModelRef(BaseModel):
    """A bundle by version and manifest digest."""

    version: str
    digest: str


class Refused(BaseModel):
    """Why the model that routing asks for does not answer."""

    version: str | None
    reason: str
    at: datetime


class Experiment(ModelRef):
    """A model beside the champion: a challenger with its share of the traffic, or a shadow, which answers nobody."""

    share: float | None
    since: str
    state: Literal["running", "paused", "refused"]
    paused_at: datetime | None
    reason: str | None


class ModelInfo(BaseModel):
    """The model that answers now."""

    name: str
    version: str
    digest: str
    variant: Variant
    degraded: bool
    task: str
    target: str
    classes: list[Label]
    threshold: float | None
    estimator: str
    metrics: dict[str, dict[str, float]]
    loaded_at: datetime
    champion: ModelRef | None
    previous: ModelRef | None
    challenger: Experiment | None
    shadow: Experiment | None
    rollout_reason: str
    refused: Refused | None


class Health(BaseModel):
    """Whether the process lives, or may be sent traffic."""

    status: Literal["alive", "ready"]


class Schema:
    """The request model of one contract. Rows are plain dicts, so a column may have any name.

    Args:
        contract: what a row is.
        profile: the reference rows, from which a typical one becomes the example.
        max_instances: most instances in one request.
    """

    def __init__(self, contract: Contract, profile: Profile, max_instances: int) -> None:
        self.max_instances = max_instances
        self.example = {column.name: _typical(column, profile.columns[column.name]) for column in contract.inputs}
        self.fields = faults.Fields(
            [*self.example, *([contract.id.name] if contract.id else [])],
            contract.target.name,
            [column.name for column in contract.columns if column.role == "ignored"],
        )
        instance = _instance(contract, self.example)
        label = _typed(contract.target)
        self.predict_request = _request("PredictRequest", "instances", instance, max_instances)
        self.explain_request = _request("ExplainRequest", "instances", instance, 1)
        self.feedback_request = _request("FeedbackRequest", "labels", _label(label), MAX_LABELS)
        self._predict: TypeAdapter[Any] = TypeAdapter(self.predict_request)
        self._explain: TypeAdapter[Any] = TypeAdapter(self.explain_request)
        self._feedback: TypeAdapter[Any] = TypeAdapter(self.feedback_request)
        self._first_fault: TypeAdapter[Any] = TypeAdapter(
            _request("PredictRequest", "instances", instance, max_instances, stop_at_first=True)
        )

    def instances(self, body: bytes) -> list[dict[str, Any]]:
        """The instances of a /predict body.

        Raises:
            Problem: 400 when it is no JSON, 422 when it breaks the contract.
        """
        try:
            rows: list[dict[str, Any]] = self._predict.validate_json(body)["instances"]
        except ValidationError as error:
            raise self._refused(error, lambda: self._first_fault.validate_json(body)) from None
        return rows

    def checked(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Rows that are Python values already, as `instances` would have read them; raises 422 as it does."""
        asked = {"instances": rows}
        try:
            found: list[dict[str, Any]] = self._predict.validate_python(asked)["instances"]
        except ValidationError as error:
            raise self._refused(error, lambda: self._first_fault.validate_python(asked)) from None
        return found

    def row(self, body: bytes) -> dict[str, Any]:
        """The one instance of an /explain body; raises as `instances`."""
        try:
            (row,) = self._explain.validate_json(body)["instances"]
        except ValidationError as error:
            raise faults.problem(error, self.fields) from None
        return dict(row)

    def labels(self, body: bytes) -> list[dict[str, Any]]:
        """The labels of a /feedback body, each with `id`, `label` and perhaps `at`; raises as `instances`."""
        try:
            rows: list[dict[str, Any]] = self._feedback.validate_json(body)["labels"]
        except ValidationError as error:
            raise faults.problem(error, faults.Fields(["id", "label", "at"])) from None
        return rows

    def _refused(self, error: ValidationError, find_first: Callable[[], Any]) -> Problem:
        # Listing a million faults would keep everybody else waiting.
        if error.error_count() > faults.MANY:
            try:
                find_first()
            except ValidationError as first:
                error = first
        return faults.problem(error, self.fields)


def _request(name: str, field: str, item: Any, most: int, stop_at_first: bool = False) -> Any:
    bounds: list[Any] = [Field(min_length=1, max_length=most), *([FailFast()] if stop_at_first else [])]
    items = Annotated[(list[item], *bounds)]
    return _closed(name, {field: items})


def _closed(name: str, fields: Mapping[str, Any]) -> Any:
    typed_dict: Any = TypedDict  # Type checkers follow only literal ones.
    made = typed_dict(name, dict(fields))
    made.__pydantic_config__ = _CLOSED
    return made


def _instance(contract: Contract, example: Mapping[str, Any]) -> Any:
    fields = {column.name: _field(column, column.nullable, example[column.name]) for column in contract.inputs}
    if contract.id is not None:
        fields[contract.id.name] = _field(contract.id, optional=True)
    return _closed("Instance", fields)


def _label(label: Any) -> Any:
    told = Field(description="when it turned out; now if left out", json_schema_extra={"format": "date-time"})
    at = NotRequired[Annotated[str, AfterValidator(_is_past), told]]
    return _closed("Label", {"id": Annotated[str, Field(min_length=1, max_length=64)], "label": label, "at": at})


def _field(column: Column, optional: bool, example: Any = None) -> Any:
    unit = f" [{column.unit}]" if column.unit else ""
    facts: dict[str, Any] = {"description": f"{column.description}{unit}".strip() or None}
    if example is not None:
        facts["examples"] = [example]
    typed = _typed(column)
    return NotRequired[Annotated[typed | None, Field(**facts)]] if optional else Annotated[typed, Field(**facts)]


def _typed(column: Column) -> Any:
    low, high = column.limits
    if column.categories and not column.unseen:
        return Literal[column.categories]
    if column.type == "float":
        return Annotated[float, Field(ge=low, le=high)]
    if column.type == "integer":
        return Annotated[int, Field(ge=math.ceil(low), le=math.floor(high))]
    if column.type == "boolean":
        return bool
    if column.type == "datetime":
        return Annotated[str, AfterValidator(_is_moment), Field(json_schema_extra={"format": "date-time"})]
    # PostgreSQL takes no NUL in a text, and an id is stored as one.
    pattern = r"^[^\x00]*$" if column.role == "id" else None
    text = Annotated[str, Field(max_length=MAX_TEXT, pattern=pattern)]
    return Annotated[text, AfterValidator(_is_free), Field(json_schema_extra={"not": {"const": MISSING}})]


def _is_moment(text: str) -> str:
    moment(text)
    return text


def _is_past(text: str) -> str:
    if moment(text) > naive(datetime.now(UTC)) + CLOCKS_APART:
        raise ValueError("must not be in the future")
    return text


def _is_free(text: str) -> str:
    if text == MISSING:
        raise ValueError(RESERVED)
    return text


def _typical(column: Column, counts: Counts) -> Any:
    """A JSON value from the middle of the reference rows; None where they have none."""
    if not counts.present:
        return None
    if column.text:
        return "a few words"
    if counts.kind == "categorical":
        mode = counts.categories[int(np.argmax(counts.counts))]
        return mode == "true" if column.type == "boolean" else mode
    counts = counts.merged()
    at = int(np.searchsorted(np.cumsum(counts.counts), counts.present / 2))
    median = counts.edges[min(at, len(counts.edges) - 1)]
    if column.type == "datetime":
        return (datetime(1970, 1, 1) + timedelta(seconds=median)).isoformat()
    return round(median) if column.type == "integer" else median
