"""A ramp that has begun: which steps ran when, and which of their rows count."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Self

from flywheel_ml.experiments.evidence import CanaryPlan, Step
from flywheel_ml.experiments.log_evidence import StepSpan
from flywheel_ml.utils import config_model


class BegunStep(config_model.StrictModel):
    """A step, and when its share was in effect; `until` is None while it is running."""

    step: int
    since: datetime
    until: datetime | None = None


class Ramp(config_model.StrictModel):
    """A running ramp, as stored in the registry.

    Attributes:
        id: no other ramp has it.
        plan: as it was at the start; later changes of params.yaml do not affect it.
        settle_seconds: servers follow a change of routing within this time; rows in it do not count.
        steps: begun so far, in order; the last one is running.
    """

    id: str
    plan: CanaryPlan
    settle_seconds: float
    steps: tuple[BegunStep, ...]

    @classmethod
    def begin(cls, name: str, plan: CanaryPlan, settle_seconds: float, now: datetime) -> Self:
        """Begin a ramp with its first step."""
        return cls(id=name, plan=plan, settle_seconds=settle_seconds, steps=(BegunStep(step=0, since=now),))

    @property
    def current(self) -> Step:
        """The running step."""
        return self.plan.steps[self.steps[-1].step]

    @property
    def next_step(self) -> Step | None:
        """The step after the running one; None if it is the last."""
        at = self.steps[-1].step + 1
        return self.plan.steps[at] if at < len(self.plan.steps) else None

    def advance(self, since: datetime, now: datetime) -> Self:
        """Return the ramp with the next step running from now on; the one before was in effect from `since` on."""
        last = self.steps[-1]
        ended = last.model_copy(update={"since": max(last.since, since), "until": now})
        begun = BegunStep(step=last.step + 1, since=now)
        return self.model_copy(update={"steps": (*self.steps[:-1], ended, begun)})

    def list_spans(self, since: datetime, now: datetime) -> Iterator[StepSpan]:
        """Yield the steps with the time in which their rows count.

        Args:
            since: when the serving folder was changed to the running step, which may be later than planned.
            now: end of the running step.
        """
        for one in self.steps:
            began = one.since if one.until else max(one.since, since)
            yield StepSpan(one.step, _to_us(began + timedelta(seconds=self.settle_seconds)), _to_us(one.until or now))

    def measure_days(self, now: datetime) -> float:
        """Return the days since the ramp began."""
        return (now - self.steps[0].since) / timedelta(days=1)


def _to_us(time: datetime) -> int:
    return int(time.astimezone(UTC).timestamp() * 1e6)
