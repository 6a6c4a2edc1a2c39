"""What a replay measured, as the JSON file has it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from flywheel_ml.core.contract import Task
from flywheel_ml.monitoring.result import Verdict
from flywheel_ml.utils import config_model
from flywheel_ml.utils.files import canonical_json


class Measured(config_model.StrictModel):
    """A value with its confidence interval; without ends if there are too few rows for one."""

    value: float
    low: float | None = None
    high: float | None = None


class Difference(config_model.StrictModel):
    """Mean loss of the live model minus that of the frozen one, on the same rows; below zero the live one is better.

    `frozen` is the mean loss of the frozen model.
    """

    rows: int
    loss: str
    frozen: float
    value: float
    low: float | None = None
    high: float | None = None


class Decided(config_model.StrictModel):
    """What the policy decided about a finding, and why."""

    finding: str
    action: str
    reason: str


class Retrained(config_model.StrictModel):
    """A retraining: its version, the role it got, the rows it learned from, and what refused it."""

    version: str
    role: str
    until: str
    rows: int
    refusal: str = ""
    comparison: str = ""


class CanaryEvent(config_model.StrictModel):
    """One look at a canary: the step it was in, what was decided, and why."""

    version: str
    step: str
    action: str
    reason: str


class PeriodResult(config_model.StrictModel):
    """One replayed period.

    Attributes:
        label: name of the period.
        start, end: its span, on the clock of the time column.
        rows, labelled: rows that batch scoring predicted, and those with a label.
        api_rows, rejected: rows sent through the API, and those that it rejected, for instance for `rejection`.
        versions: versions that were champion, in order.
        frozen, live: quality of the first model and of the one in service, on the same rows.
        difference: of their losses; None while both are the same model.
        verdict, headline, drifted: what monitoring found.
        decided: what the policy decided.
        retrained, retraining_error: the retraining that it led to, and why it failed or its canary did not start.
        canary: looks at the canary, in order.
        promoted: version that became champion in this period.
        seconds: step → seconds.
    """

    label: str
    start: datetime
    end: datetime
    rows: int
    labelled: int
    api_rows: int
    rejected: int
    rejection: str = ""
    versions: tuple[str, ...]
    frozen: Measured | None
    live: Measured | None
    difference: Difference | None
    verdict: Verdict
    headline: str
    drifted: tuple[str, ...]
    decided: tuple[Decided, ...]
    retrained: Retrained | None = None
    retraining_error: str = ""
    canary: tuple[CanaryEvent, ...] = ()
    promoted: str | None = None
    seconds: Mapping[str, float]


class FirstModel(config_model.StrictModel):
    """The model that was trained before the replay, and that stays frozen for comparison."""

    version: str
    estimator: str
    first: datetime
    until: datetime
    rows: int
    tested: float | None
    seconds: float


class ReplayResult(config_model.StrictModel):
    """A whole replay.

    Attributes:
        name, target, task: of the contract.
        metric: the deciding metric of monitoring.
        confidence: level of all intervals.
        commit: of the project that was replayed.
        has_edits: whether the working tree had edits, which took no part.
        trained_on: labels of the first and last period before the replay.
        first: the first model.
        periods: the replayed periods, in order.
        difference: over all rows that the live model predicted while it was another one than the frozen one.
        compared, agreed: API answers of the champion, and those that equal batch scoring to the last bit.
        label_delay: how late labels arrive, in words.
        seconds: of the whole replay.
        cores: of the machine.
    """

    format: Literal[1] = 1
    at: datetime
    name: str
    target: str
    task: Task
    metric: str
    confidence: float
    commit: str
    has_edits: bool
    trained_on: tuple[str, str]
    first: FirstModel
    periods: tuple[PeriodResult, ...]
    difference: Difference | None
    compared: int
    agreed: int
    label_delay: str
    seconds: float
    cores: int

    @property
    def promoted(self) -> list[str]:
        """Versions that became champion during the replay."""
        return [period.promoted for period in self.periods if period.promoted]

    def to_json(self) -> str:
        """Serialize the result to canonical JSON."""
        return canonical_json(self.model_dump(mode="json"), indent=2) + "\n"
