"""The groups `retrain` and `policy` of params.yaml."""

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from flywheel_ml.utils import config_model

Finding = Literal[
    "drift", "prediction_drift", "degraded_quality", "contract_violations", "stale_model", "canary_errors"
]
Action = Literal["none", "alert", "retrain", "roll back"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)
ACTIONS: tuple[Action, ...] = get_args(Action)


class RetrainParams(config_model.StrictModel):
    """When a retrained model counts as good as the champion; see docs/retraining.md.

    `max_loss_increase` is the tolerated increase of the mean loss, as a share of the champion's: the whole interval of
    the paired difference, of level `confidence_level`, must be below it. `min_kept_skill` is the share of the skill
    that the champion has on its own test rows, which the candidate needs on recent rows: wrong labels lower it.
    """

    max_loss_increase: float = Field(default=0.02, ge=0, le=1)
    confidence_level: float = Field(default=0.95, gt=0.5, lt=1)
    min_kept_skill: float = Field(default=0.6, ge=0, le=1)


class PolicyParams(config_model.StrictModel):
    """What a finding of monitoring leads to; see docs/retraining.md.

    `retrain` and `roll back` need the finding in `windows` consecutive windows. An action is not repeated within
    `cool_down_days`, nor before a window without the finding. `max_model_age_days` makes a model stale; None: never.
    `with_log` lets an automatic retraining also learn from the labelled rows of the log.
    """

    drift: Action = "alert"
    prediction_drift: Action = "alert"
    degraded_quality: Action = "alert"
    contract_violations: Action = "alert"
    stale_model: Action = "alert"
    canary_errors: Action = "roll back"
    windows: int = Field(default=3, gt=0)
    cool_down_days: float = Field(default=7.0, ge=0)
    max_model_age_days: float | None = Field(default=None, gt=0)
    with_log: bool = False

    @field_validator(*FINDINGS, mode="before")
    @classmethod
    def _is_action(cls, value: object) -> object:
        if isinstance(value, str) and value not in ACTIONS:
            raise ValueError(f"no such action; {config_model.suggest(value, list(ACTIONS))}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _names_are_findings(cls, content: object) -> object:
        if isinstance(content, Mapping):
            for name, value in content.items():
                if name not in cls.model_fields and value in ACTIONS:
                    raise ValueError(f"no such finding '{name}'; {config_model.suggest(str(name), list(FINDINGS))}")
        return content

    def get_action(self, finding: Finding) -> Action:
        """Return the action that a finding leads to."""
        action: Action = getattr(self, finding)
        return action
