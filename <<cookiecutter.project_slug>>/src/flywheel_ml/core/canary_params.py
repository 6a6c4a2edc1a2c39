"""The group `canary` of params.yaml."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from flywheel_ml.utils import config_model

Approval = Literal["automatic", "approve"]


class CanaryParams(config_model.StrictModel):
    """How a challenger proves itself next to the champion; see docs/canary.md.

    Attributes:
        max_loss_increase: smallest increase of the mean loss that matters, as a share of the champion's on test rows.
        loss: `log`, `zero_one` or `squared`; `auto` is log loss for classes, squared error for numbers.
        comparison: `paired` if predictions cannot affect outcomes, else `randomised`.
        shares: of the traffic, one for each step after the shadow.
        min_rows, min_labels: of the challenger, before a step may end; `min_shadow_labels` of the shadow step.
        deadline_days: an undecided challenger is not promoted.
        max_error_rate: tolerated share of the challenger's rows that fail or are too slow.
        min_latency_ms: faster requests count as this fast.
        settle_seconds: how long after a change of routing rows do not count, because servers still follow.
        promotion, rollback: whether they are carried out at once, or after `canary approve`.
        auto_start: whether the schedule starts a ramp for a new challenger.
    """

    max_loss_increase: float = Field(default=0.05, gt=0, le=1)
    loss: Literal["auto", "log", "zero_one", "squared"] = "auto"
    comparison: Literal["paired", "randomised"] = "paired"
    shares: tuple[float, ...] = Field(default=(0.05, 0.25, 0.5), min_length=1)
    min_rows: int = Field(default=200, ge=1)
    min_labels: int = Field(default=100, ge=0)
    min_shadow_labels: int = Field(default=500, ge=1)
    deadline_days: float = Field(default=14.0, gt=0)
    max_error_rate: float = Field(default=0.01, ge=0, lt=1)
    min_latency_ms: float = Field(default=100.0, ge=0)
    settle_seconds: float = Field(default=10.0, ge=0)
    promotion: Approval = "approve"
    rollback: Approval = "approve"
    auto_start: bool = False

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if any(not 0 < share < 1 for share in self.shares) or any(b <= a for a, b in pairwise(self.shares)):
            raise ValueError(f"shares rise and are above 0 and below 1, found {list(self.shares)}")
        return self
