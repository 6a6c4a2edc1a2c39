"""Brings a retrained version into service by a canary, which is looked at after each part."""

from flywheel_ml.core.params import Params
from flywheel_ml.core.retraining_params import FINDINGS, PolicyParams
from flywheel_ml.flows.canary import controller, starting
from flywheel_ml.flows.replay.context import ReplayContext, Stopwatch
from flywheel_ml.flows.replay.steps.server import Client
from flywheel_ml.monitoring.replay.result import CanaryEvent, Retrained
from flywheel_ml.utils.errors import ProjectError


class Promoter:
    """Runs one canary at a time; its version is promoted or rolled back by the controller.

    Args:
        context: of the replay.
        client: of the running server.

    Attributes:
        is_running: whether a canary is undecided.
    """

    def __init__(self, context: ReplayContext, client: Client) -> None:
        self.is_running = False
        self._context = context
        self._client = client
        self._events: list[CanaryEvent] = []
        self._promoted: str | None = None

    def begin(self, found: Retrained | None, stopwatch: Stopwatch) -> str:
        """Start the canary of a version that passed its gates and the comparison; return why it cannot start."""
        if found is None or found.role != "challenger":
            return ""
        context = self._context
        with stopwatch.time("canary"):
            try:
                starting.start(context.project, context.settings, context.params, found.version)
            except ProjectError as error:
                return str(error)
            self._client.follow(context.settings)
        self.is_running = True
        return ""

    def look(self, stopwatch: Stopwatch) -> None:
        """Look at the running canary; the server follows what is decided before the next part is sent."""
        if not self.is_running:
            return
        context = self._context
        with stopwatch.time("canary"):
            look = controller.look(context.project, context.settings, context.params)
            self._client.follow(context.settings)
        if look.record is None:  # Nothing could be counted; the next look tries again.
            return
        self.is_running = not look.is_over
        version = look.record.version
        self._events.append(CanaryEvent(version=version, step=look.record.step, action=look.action, reason=look.reason))
        if look.action == "promote" and look.is_over:
            self._promoted = version

    def take_events(self) -> tuple[tuple[CanaryEvent, ...], str | None]:
        """Return what happened since the last call, and the version that became champion."""
        events, promoted = tuple(self._events), self._promoted
        self._events, self._promoted = [], None
        return events, promoted

    def restrain(self, params: Params) -> Params:
        """Return parameters whose policy only alerts while a canary is undecided: its version may be the remedy."""
        if not self.is_running:
            return params
        alerting: dict[str, str] = dict.fromkeys(FINDINGS, "alert")
        return params.model_copy(update={"policy": PolicyParams.model_validate(alerting)})
