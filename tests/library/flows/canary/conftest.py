"""A ramp of the registry's second version, and traffic that is written to the log directly."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core.canary_params import CanaryParams
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.ramp import Ramp
from flywheel_ml.flows import rollout
from flywheel_ml.flows.canary import controller, starting
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.prediction_log import Writer
from library.helpers import project, store
from library.helpers.canaries import Traffic
from library.helpers.project import PROJECT

AUTOMATIC = CanaryParams(
    max_loss_increase=0.4, loss="zero_one", settle_seconds=0.0, promotion="automatic", rollback="automatic"
)
"""A margin of about 10 points, so that a thousand rows decide."""


class Canary:
    """A ramp and its traffic, with a clock that tests move."""

    def __init__(self, registry: Registry, settings: Settings, params: Params) -> None:
        self.registry, self.settings, self.params = registry, settings, params
        self.now = datetime.now(UTC)

    def with_canary(self, **changed: Any) -> "Canary":
        """Change `params.canary`."""
        group = self.params.canary.model_copy(update=changed)
        self.params = self.params.model_copy(update={"canary": group})
        return self

    def start(self) -> "Canary":
        """Start the ramp."""
        starting.start(PROJECT, self.settings, self.params)
        return self

    def send(self, sent_percent: int | None = None, **changed: Any) -> None:
        """Log traffic as the running step routes it, or with another share."""
        self.now = max(self.now, datetime.now(UTC)) + timedelta(minutes=1)
        digests = (self.registry.get("1").digest, self.registry.get("2").digest)
        traffic = Traffic(*digests, int(self.now.timestamp() * 1e6))._replace(**changed)
        share = self.ramp.current.share
        percent = sent_percent or round(100 * (share or 0))
        rows = traffic.shadow() if share is None else traffic.share(percent)
        with Writer(self.settings.prediction_log, "serve") as writer:
            writer.append(rows).result(30)
        self.now += timedelta(minutes=1)

    def look(self, approve: bool = False) -> controller.Look:
        """Look at the ramp."""
        return controller.look(PROJECT, self.settings, self.params, approve, self.now)

    @property
    def plan(self) -> rollout.ExperimentPlan | None:
        """What the registry has."""
        return rollout.read_plan(self.registry)

    @property
    def ramp(self) -> Ramp:
        """The ramp that the registry has."""
        assert self.plan is not None
        assert self.plan.ramp is not None
        return self.plan.ramp


@pytest.fixture
def canary(two: Registry, folder: Path, settings: Settings, params: Params) -> Canary:
    """A project with a champion and a challenger; the policy is automatic."""
    text = (project.ROOT / "contract.yaml").read_text()
    (folder / "contract.yaml").write_text(text.replace("\nname: flights\n", f"\nname: {store.NAME}\n"))
    return Canary(two, settings, params.model_copy(update={"canary": AUTOMATIC}))


Attack = Callable[[Canary], None]
