"""How a replay compresses time: parts of a period, delay of labels, sample of the API, policy."""

from pydantic import Field

from flywheel_ml.core.canary_params import CanaryParams
from flywheel_ml.core.retraining_params import PolicyParams
from flywheel_ml.utils import config_model


class ReplayParams(config_model.StrictModel):
    """Parameters of a replay, in place of those that assume that a month lasts a month.

    Attributes:
        train_periods: periods before the replay, which the first model learns from; None: half of them.
        parts: parts of a period, sent one after the other; a canary may advance after each.
        label_delay_parts: parts between a prediction and its label.
        api_rows: rows of a period that are sent through the API; batch scoring predicts all of them.
        request_rows: rows of one request.
        policy: what the findings of a period lead to; a period is one window.
        shares, min_rows: of a canary, after its shadow step: fewer rows than in real traffic, so that a canary can
            end within a period.
    """

    train_periods: int | None = Field(default=None, ge=1)
    parts: int = Field(default=4, ge=1, le=31)
    label_delay_parts: int = Field(default=1, ge=0, le=62)
    api_rows: int = Field(default=6000, ge=1)
    request_rows: int = Field(default=100, ge=1, le=1000)
    policy: PolicyParams = PolicyParams(
        drift="retrain", prediction_drift="retrain", degraded_quality="retrain", windows=1, cool_down_days=0.0
    )
    shares: tuple[float, ...] = (0.1, 0.5)
    min_rows: int = Field(default=100, ge=1)

    def compress(self, params: CanaryParams) -> CanaryParams:
        """Return the project's canary with these steps; it decides by itself, and the server follows at once."""
        steps = {"shares": self.shares, "min_rows": self.min_rows, "settle_seconds": 0.0}
        return params.model_copy(update={**steps, "promotion": "automatic", "rollback": "automatic"})
