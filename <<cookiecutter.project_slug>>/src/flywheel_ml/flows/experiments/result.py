"""The content of an experiment's report, as it is written to JSON."""

from datetime import datetime
from typing import Literal

from flywheel_ml.utils import config_model

Verdict = Literal["better", "worse", "undecided", "no data", "not valid"]
Direction = Literal["lower", "higher"]


class Difference(config_model.StrictModel):
    """A challenger's mean minus the champion's, with its interval; None while it is unknown."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None


class Look(config_model.StrictModel):
    """The difference as it was known at a time, from the rows of both models that were predicted until then."""

    at: datetime
    labelled: int
    difference: Difference


class SliceDifference(config_model.StrictModel):
    """The difference among the labelled rows that share one value of one column."""

    column: str
    value: str
    champion_rows: int
    challenger_rows: int
    difference: Difference


class GuardResult(config_model.StrictModel):
    """A guard: whether it tripped, and what it saw. Its evidence is a logarithm; it trips at the threshold."""

    name: str
    measured: bool
    tripped: bool
    detail: str
    evidence: float
    threshold: float

    @property
    def state(self) -> str:
        """One word or two for tables."""
        return "tripped" if self.tripped else "passed" if self.measured else "not measured"


class ArmResult(config_model.StrictModel):
    """One version next to the champion.

    `share` is None for a shadow. `mean` and `champion_mean` are weighted over periods as the difference is. `labelled`
    counts rows with a value of the metric; of a shadow, those that both models answered.
    """

    version: str
    digest: str
    share: float | None
    rows: int
    errors: int
    labelled: int
    champion_mean: float | None
    mean: float | None
    difference: Difference
    verdict: Verdict
    reason: str
    looks: tuple[Look, ...]
    guards: tuple[GuardResult, ...]
    slices: tuple[SliceDifference, ...]


class ExperimentReport(config_model.StrictModel):
    """An experiment up to a time.

    `alpha` is the error probability of all differences together, `arm_alpha` that of one arm, and `slice_alpha` that
    of one slice. `effect` is the difference that was planned for, in units of the metric; None without any row.
    """

    at: datetime
    name: str
    metric: str
    loss: str | None
    better: Direction
    champion: str
    champion_digest: str
    since: datetime
    until: datetime
    is_running: bool
    periods: int
    champion_rows: int
    champion_errors: int
    champion_labelled: int
    alpha: float
    arm_alpha: float
    slice_alpha: float | None
    effect: float | None
    effect_is_given: bool
    arms: tuple[ArmResult, ...]
    guards: tuple[GuardResult, ...]
    notes: tuple[str, ...]
