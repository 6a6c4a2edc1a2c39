"""What a canary is planned to do, and what was counted in each of its steps."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.utils import config_model
from flywheel_ml.utils.formatting import percent

MAX_ALPHA = 0.05
"""Of a whole ramp: the probability of any wrong decision."""
LATENCY_RATIO = 1.5
LATENCY_EDGES = tuple(1e-4 * LATENCY_RATIO**at for at in range(30))
"""Upper edges of the latency bins in seconds, from 0.1 ms to 12.8 s; slower rows are in one bin more."""


Loss = Literal["log", "zero_one", "squared"]
"""`log` and `zero_one` (wrong or not) are for classes, `squared` is for numbers."""


class AlphaBudget(config_model.StrictModel):
    """Error probabilities of everything that a ramp decides; they add up to `MAX_ALPHA` at most.

    Attributes:
        worse: to roll back for its loss a challenger that is as good as the champion.
        promote: to promote a challenger whose loss is worse by the margin.
        shadow: to roll back such a good challenger in the shadow step of a randomised comparison.
        errors: to roll back for errors a challenger that has as many as the champion: `look_errors` in the looks at the
            ramp, and `hourly_errors` in the check of every experiment, which looks at each step for itself.
        latency: to roll back for latency a challenger that is at most 1.5 times slower.
        sample_ratio: to roll back for its number of rows a challenger that is assigned as planned.
    """

    worse: float = Field(default=0.025, gt=0, lt=1)
    promote: float = Field(default=0.015, gt=0, lt=1)
    shadow: float = Field(default=0.003, gt=0, lt=1)
    errors: float = Field(default=0.003, gt=0, lt=1)
    latency: float = Field(default=0.003, gt=0, lt=1)
    sample_ratio: float = Field(default=0.001, gt=0, lt=1)

    @property
    def look_errors(self) -> float:
        """Part of `errors` that the looks at the ramp may spend."""
        return self.errors * 2 / 3

    @property
    def hourly_errors(self) -> float:
        """Part of `errors` that the hourly check may spend, over all steps."""
        return self.errors / 3

    @property
    def total(self) -> float:
        """Sum of all, by the union bound the probability of any wrong decision."""
        return self.worse + self.promote + self.shadow + self.errors + self.latency + self.sample_ratio

    @model_validator(mode="after")
    def _check_total(self) -> Self:
        if self.total > MAX_ALPHA + 1e-9:
            raise ValueError(f"the parts add up to {self.total:.3g}; together they may be {MAX_ALPHA} at most")
        return self


class Step(config_model.StrictModel):
    """One step of a ramp; without a share it is the shadow step.

    Attributes:
        share: of the rows that the challenger answers.
        min_rows: rows of the challenger before the step may end.
        min_labels: labelled ones among them. In a paired comparison the shadow step ends when the loss is decided.
    """

    share: float | None = Field(default=None, gt=0, lt=1)
    min_rows: int = Field(default=200, ge=1)
    min_labels: int = Field(default=100, ge=0)

    @property
    def label(self) -> str:
        """Name of the step for messages."""
        return "shadow" if self.share is None else percent(self.share)


class CanaryPlan(config_model.StrictModel):
    """How a canary is decided.

    Attributes:
        margin: smallest increase of the mean loss that matters, in units of the loss.
        loss: of one labelled row.
        comparison: `paired` if predictions cannot affect outcomes: rows that both models answered decide about the
            loss. `randomised` if they can: rows are compared that only one of the two answered.
        loss_scale: the largest change of loss that is usual in one row; 1 for a 0/1 loss.
        max_error_ratio: tolerated ratio of the challenger's error rate to the champion's.
        max_error_rate: tolerated error rate of the challenger, whatever the champion's is.
        min_latency_seconds: requests that are faster count as this fast. A challenger has a thread of its own, which
            delays its rows by about a millisecond, whatever the model.
        deadline_days: after which an undecided challenger is not promoted.
        steps: the shadow step, then rising shares.
    """

    margin: float = Field(gt=0)
    loss: Loss = "zero_one"
    comparison: Literal["paired", "randomised"] = "paired"
    loss_scale: float = Field(default=1.0, gt=0)
    max_error_ratio: float = Field(default=1.0, ge=1)
    max_error_rate: float = Field(default=0.0, ge=0, lt=1)
    min_latency_seconds: float = Field(default=0.02, ge=0)
    deadline_days: float = Field(default=14.0, gt=0)
    budget: AlphaBudget = AlphaBudget()
    steps: tuple[Step, ...] = (Step(min_labels=500), Step(share=0.05), Step(share=0.25), Step(share=0.5))

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        shares = [0.0 if step.share is None else step.share for step in self.steps]
        if not shares or any(b <= a for a, b in pairwise(shares)):
            raise ValueError(f"steps are the shadow step (no share) and rising shares, found {shares}")
        if self.comparison == "paired" and self.steps[0].share is not None:
            raise ValueError("a paired comparison starts with the shadow step, which has no share")
        if self.comparison == "randomised" and not shares[-1]:
            raise ValueError("a randomised comparison has a step with a share")
        return self


class VariantEvidence(NamedTuple):
    """Counts of one variant in one step.

    Attributes:
        rows: that the variant was assigned; in the shadow step all rows, for both.
        errors: rows without a usable answer of the variant, such as exceptions, timeouts, NaN.
        latencies: rows per bin of `LATENCY_EDGES` and one more; empty if it is not measured.
        losses: of the labelled rows that the variant answered.
    """

    rows: int = 0
    errors: int = 0
    latencies: tuple[int, ...] = ()
    losses: LossSums = LossSums()


class StepEvidence(NamedTuple):
    """Counts of one step, over the time in which its share was in effect.

    Attributes:
        step: its index in the plan. A step that was entered again is another stratum with the same index.
        champion: rows for which the champion was chosen.
        challenger: rows for which the challenger was chosen.
        paired: losses of the challenger minus those of the champion, over labelled rows that both answered.
    """

    step: int
    champion: VariantEvidence = VariantEvidence()
    challenger: VariantEvidence = VariantEvidence()
    paired: LossSums = LossSums()


def find_fault(evidence: StepEvidence, plan: CanaryPlan) -> str:
    """Return what is wrong with counts that cannot be right; empty if nothing is."""
    if not 0 <= evidence.step < len(plan.steps):
        return f"step {evidence.step} is not one of the plan's {len(plan.steps)}"
    return next(_list_faults(evidence), "")


def _list_faults(evidence: StepEvidence) -> Iterator[str]:
    for name, variant in (("champion", evidence.champion), ("challenger", evidence.challenger)):
        if not 0 <= variant.errors <= variant.rows:
            yield f"the {name} has {variant.errors} errors in {variant.rows} rows"
        if variant.latencies and (len(variant.latencies) != len(LATENCY_EDGES) + 1 or min(variant.latencies) < 0):
            yield f"the {name}'s latencies are not {len(LATENCY_EDGES) + 1} counts"
        yield from _check_sums(f"the {name}'s losses", variant.losses)
    yield from _check_sums("the differences of loss", evidence.paired)


def _check_sums(name: str, sums: LossSums) -> Iterator[str]:
    if not all(math.isfinite(one) for one in sums):
        yield f"{name} are not finite; count a row without a finite loss as an error"
    elif sums.rows < 0 or sums.squares < 0 or sums.total**2 > sums.rows * sums.squares * (1 + 1e-9):
        yield f"{name} are not sums: {sums.rows} rows, total {sums.total:g}, squares {sums.squares:g}"
