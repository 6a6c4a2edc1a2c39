"""The JSON documents in responses."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from flywheel_ml.core.contract import Label
from flywheel_ml.explanation.explanation import Explanation

Variant = Literal["champion", "challenger", "fallback"]


class Answer(BaseModel):
    """One prediction; send its `id` to /feedback with the actual outcome.

    For classes, `probabilities` has a number in [0, 1] for each class. For a numeric target, `interval` has the bounds
    of the prediction interval, at the level in the model card. If several models answered one request, each prediction
    names its model.
    """

    id: str
    prediction: Label | float
    probabilities: dict[str, float] | None = None
    interval: tuple[float, float] | None = None
    model_version: str | None = None
    variant: Variant | None = None


class Answers(BaseModel):
    """The predictions of a request, in the order of its instances; `degraded` if a fallback answered one of them."""

    predictions: list[Answer]
    model_version: str
    variant: Variant
    degraded: bool


class Explanations(BaseModel):
    """The explanation of a request's one instance, by the model in service."""

    explanations: list[Explanation]
    model_version: str
    variant: Variant
    degraded: bool


class Accepted(BaseModel):
    """How many labels of the request are in the log, new and repeated ones."""

    accepted: int


class ModelRef(BaseModel):
    """A bundle by version and manifest digest."""

    version: str
    digest: str


class RejectedBundle(BaseModel):
    """Why the model in routing was rejected."""

    version: str | None
    reason: str
    at: datetime


class Experiment(ModelRef):
    """A model alongside the champion: a challenger with its share of the traffic, or a shadow, which only logs."""

    share: float | None
    since: str
    state: Literal["running", "paused", "rejected"]
    paused_at: datetime | None
    reason: str | None


class ModelInfo(BaseModel):
    """The model in service; `challenger` is the first of `challengers`."""

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
    challengers: list[Experiment]
    challenger: Experiment | None
    shadow: Experiment | None
    rollout_reason: str
    rejected: RejectedBundle | None


class Health(BaseModel):
    """Whether the process is alive, or ready for traffic."""

    status: Literal["alive", "ready"]
