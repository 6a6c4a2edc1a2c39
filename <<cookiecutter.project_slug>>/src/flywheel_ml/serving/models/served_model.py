"""Models in service: the one that answers, and those that are tried next to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.serving_folder import BundleRef, Challenger, Routing, Shadow
from flywheel_ml.prediction_log import Origin
from flywheel_ml.serving.experiments.circuit_breaker import CircuitBreaker
from flywheel_ml.serving.experiments.runner import Runner
from flywheel_ml.serving.models.output_texts import OutputTexts
from flywheel_ml.serving.schema.request_schema import Schema

Variant = Literal["champion", "challenger", "shadow", "fallback"]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A verified bundle in service."""

    bundle: Bundle
    ref: BundleRef
    schema: Schema
    variant: Variant
    loaded_at: datetime
    is_prior: bool = False
    """Whether the bundle's prior answers, because its model cannot be used."""

    @cached_property
    def degraded(self) -> bool:
        """Whether this stands in for the model that routing asks for."""
        return self.variant == "fallback"

    @cached_property
    def prior(self) -> "ServedModel":
        """What answers the rows that the model cannot: the bundle's prior."""
        return replace(self, bundle=self.bundle.prior, variant="fallback", is_prior=True)

    @cached_property
    def texts(self) -> OutputTexts:
        """Writes this model's predictions."""
        return OutputTexts(self.bundle.manifest.classes)

    @cached_property
    def id_column(self) -> str | None:
        """Name of the column that names a row, if there is one."""
        return self.bundle.contract.id.name if self.bundle.contract.id else None

    @cached_property
    def time_column(self) -> str | None:
        """Name of the column that says when a row happened, if there is one."""
        return self.bundle.contract.time.name if self.bundle.contract.time else None

    @cached_property
    def origin(self) -> Origin:
        """What the log notes of every prediction that this model makes."""
        return Origin(self.variant, self.ref.version, self.ref.digest, self.degraded, self.id_column, self.time_column)


class Experiment:
    """A challenger or a shadow in service.

    Args:
        model: what is tried.
        spec: what routing says of it.
        on_pause: called once, with the experiment and the reason, when its breaker opens.
    """

    def __init__(
        self, model: ServedModel, spec: Challenger | Shadow, on_pause: Callable[["Experiment", str], None]
    ) -> None:
        self.model = model
        self.spec = spec
        self.runner = Runner(model.variant)
        self.breaker = CircuitBreaker(lambda reason: on_pause(self, reason))
        self.is_stuck = False
        """Whether a call is overdue: nobody else need wait for it."""
        self.has_call_in_flight = False
        self.pending: list[Any] = []
        """What came in the event loop while it was asked, for the next call; there is one at a time from there."""

    @property
    def paused(self) -> tuple[datetime, str] | None:
        """When and why the breaker opened."""
        return self.breaker.opened

    def is_same(self, asked: Challenger | Shadow) -> bool:
        """Whether this is the experiment that is asked for, whatever its share now."""
        return (type(self.spec), self.spec.ref, self.spec.salt) == (type(asked), asked.ref, asked.salt)

    def close(self) -> None:
        """End it after the calls at hand."""
        self.breaker.retire()
        self.runner.close()


@dataclass(frozen=True, eq=False)
class Deployment:
    """What routing asks for, as far as it could be loaded; requests hold the one they began with."""

    model: ServedModel
    routing: Routing
    challenger: Experiment | None = None
    shadow: Experiment | None = None

    @property
    def experiments(self) -> list[Experiment]:
        """Those that run next to the model."""
        return [one for one in (self.challenger, self.shadow) if one is not None]
