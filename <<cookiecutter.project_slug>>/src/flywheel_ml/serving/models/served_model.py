"""Models in service: the one that answers, and the experiments alongside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.serving_folder import BundleRef, Challenger, Routing, Shadow
from flywheel_ml.prediction_log import CHALLENGER, Origin
from flywheel_ml.serving.experiments.assignment import RowAssigner
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
    """Whether this is the bundle's class prior, used because the model itself is unusable."""

    @cached_property
    def degraded(self) -> bool:
        """Whether this is a fallback for the model in routing."""
        return self.variant == "fallback"

    @cached_property
    def prior(self) -> "ServedModel":
        """The bundle's class prior, which answers the rows that the model cannot score."""
        return replace(self, bundle=self.bundle.prior, variant="fallback", is_prior=True)

    @cached_property
    def formatter(self) -> OutputTexts:
        """The formatter of this model's predictions."""
        return OutputTexts(self.bundle.manifest.classes)

    @cached_property
    def id_column(self) -> str | None:
        """Name of the column that identifies a row, if there is one."""
        return self.bundle.contract.id.name if self.bundle.contract.id else None

    @cached_property
    def time_column(self) -> str | None:
        """Name of the column with the time of a row's event, if there is one."""
        return self.bundle.contract.time.name if self.bundle.contract.time else None

    @cached_property
    def origin(self) -> Origin:
        """The log columns that are the same for every prediction of this model."""
        return Origin(self.variant, self.ref.version, self.ref.digest, self.degraded, self.id_column, self.time_column)


class RunningExperiment:
    """A challenger or a shadow in service.

    Args:
        model: the model that runs alongside the champion.
        spec: its entry in routing.
        on_pause: called once, with the experiment and the reason, when its breaker opens.
    """

    def __init__(
        self, model: ServedModel, spec: Challenger | Shadow, on_pause: Callable[["RunningExperiment", str], None]
    ) -> None:
        self.model = model
        self.spec = spec
        self.runner = Runner(model.variant)
        self.breaker = CircuitBreaker(lambda reason: on_pause(self, reason))
        self.is_overdue = False
        """Whether a call has timed out; until it returns, requests skip this model."""
        self.has_call_in_flight = False
        self.pending: list[Any] = []
        """Requests that arrived during a call, for the next one; the event loop makes one call at a time."""

    @property
    def paused(self) -> tuple[datetime, str] | None:
        """When and why the breaker opened."""
        return self.breaker.opened

    def is_same(self, spec: Challenger | Shadow) -> bool:
        """Whether this is the experiment in routing, ignoring its share."""
        return (type(self.spec), self.spec.ref, self.spec.salt) == (type(spec), spec.ref, spec.salt)

    def close(self) -> None:
        """End the experiment after the queued calls."""
        self.breaker.retire()
        self.runner.close()


@dataclass(frozen=True, eq=False)
class Deployment:
    """The models of a routing that could be loaded; a request keeps the deployment that it began with."""

    model: ServedModel
    routing: Routing
    challengers: tuple[RunningExperiment, ...] = ()
    shadow: RunningExperiment | None = None

    @property
    def experiments(self) -> list[RunningExperiment]:
        """The experiments that run alongside the model."""
        return [*self.challengers, *([self.shadow] if self.shadow else [])]

    @cached_property
    def arms(self) -> list[RunningExperiment | None]:
        """The challengers in the order of the routing; None for one that was rejected."""
        running = {one.model.ref: one for one in self.challengers}
        return [running.get(one.ref) for one in self.routing.challengers]

    @cached_property
    def arm_names(self) -> list[str]:
        """Names of the challengers in the log's `assigned_variant`; with several, each has its version."""
        versions = [one.ref.version for one in self.routing.challengers]
        return [f"{CHALLENGER}:{version}" for version in versions] if len(versions) > 1 else [CHALLENGER]

    @cached_property
    def assigner(self) -> RowAssigner:
        """Assigns rows to the challengers; only with a challenger."""
        return RowAssigner(self.routing, self.model.id_column)

    def find_experiment(self, spec: Challenger | Shadow) -> RunningExperiment | None:
        """Return the experiment that runs for an entry in routing; None if it was rejected."""
        return next((one for one in self.experiments if one.is_same(spec)), None)
