"""The plan of an experiment, as the registry stores it."""

import json
import math
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from flywheel_ml.core import serving_folder
from flywheel_ml.experiments.ramp import Ramp
from flywheel_ml.model.registration.registry import CHAMPION, Registry, Version
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError


class Arm(config_model.StrictModel):
    """A version in an experiment, and its share of the keys; without a share it is a shadow."""

    version: str
    share: float | None = Field(default=None, gt=0, le=1)


class ExperimentPlan(config_model.StrictModel):
    """An experiment alongside the champion, as stored in the registry: one shadow, or challengers with their shares.

    With a ramp, it has one arm, whose share the canary controller changes. Plans of older versions have none.
    """

    champion: str
    arms: tuple[Arm, ...] = Field(min_length=1)
    salt: str
    since: str
    who: str
    why: str
    ramp: Ramp | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, content: Any) -> Any:
        """Accept a plan with one arm, as `dump` writes it."""
        if not isinstance(content, dict):
            return content
        if isinstance(content.get("ramp"), dict):
            # As JSON, where lists may become tuples and texts times; after this validator they may not.
            content = {**content, "ramp": Ramp.model_validate_json(json.dumps(content["ramp"]))}
        if "version" in content:
            arm = {"version": content["version"], "share": content.get("share")}
            return {**{key: value for key, value in content.items() if key not in arm}, "arms": (arm,)}
        arms = content.get("arms")
        return {**content, "arms": tuple(arms)} if isinstance(arms, list) else content

    def dump(self) -> dict[str, Any]:
        """Return the content for the registry; one arm as older versions of this package read it."""
        content = self.model_dump(mode="json", exclude=set() if self.ramp else {"ramp"})
        return {**content, **content.pop("arms")[0]} if len(self.arms) == 1 else content

    @property
    def versions(self) -> str:
        """The versions, separated by commas."""
        return ", ".join(arm.version for arm in self.arms)

    @property
    def is_shadow(self) -> bool:
        """Whether it is a shadow."""
        return self.arms[0].share is None

    @property
    def kind(self) -> str:
        """Kind of experiment: `shadow`, or the challengers with their shares."""
        shares = " + ".join(format_share(arm.share) for arm in self.arms if arm.share is not None)
        return "shadow" if self.is_shadow else f"challenger{'s' * (len(self.arms) > 1)} {shares}"

    def keeps_keys_of(self, other: Self) -> bool:
        """Whether each version keeps the keys that it had: all shares have grown or shrunk alike."""
        if [arm.version for arm in self.arms] != [arm.version for arm in other.arms]:
            return False
        pairs = [(arm.share, before.share) for arm, before in zip(self.arms, other.arms, strict=True)]
        ratios = [new / old for new, old in pairs if new is not None and old is not None]
        return len(ratios) == len(pairs) and math.isclose(min(ratios), max(ratios))


def format_share(share: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.4g}%"


def order_arms(arms: Sequence[Arm], running: ExperimentPlan | None) -> tuple[Arm, ...]:
    """Return the arms in the order of the running experiment, on which the assignment of keys depends."""
    places = {arm.version: at for at, arm in enumerate(running.arms)} if running else {}
    return tuple(sorted(arms, key=lambda arm: places.get(arm.version, len(places))))


def is_other_experiment(running: ExperimentPlan, asked: ExperimentPlan) -> bool:
    """Whether the running experiment has other versions, or is a canary, which sets its shares itself."""
    if running.ramp is not None:
        return running.arms != asked.arms
    return {arm.version for arm in running.arms} != {arm.version for arm in asked.arms}


def check_arms(plan: ExperimentPlan) -> None:
    """Raise if the versions and shares cannot be an experiment."""
    versions = [arm.version for arm in plan.arms]
    if twice := [version for version in versions if versions.count(version) > 1]:
        raise ConfigError(f"version {twice[0]} is listed twice; each version of an experiment has one share")
    if len(plan.arms) > 1 and any(arm.share is None for arm in plan.arms):
        raise ConfigError("a shadow runs alone; give each of several versions a share of the traffic")
    if (total := math.fsum(arm.share or 0.0 for arm in plan.arms)) > 1 + serving_folder.SHARE_TOLERANCE:
        raise ConfigError(f"the shares add up to {format_share(total)}; together they may be 100% at most")


def read_plan(registry: Registry) -> ExperimentPlan | None:
    """Read the plan of the running experiment; None if there is none."""
    champion = registry.find_alias(CHAMPION)
    return read_plan_for(registry, champion) if champion else None


def read_plan_for(registry: Registry, champion: Version) -> ExperimentPlan | None:
    """Read the plan for this champion; a plan made for another champion is ignored."""
    content = registry.get_plan()
    plan = config_model.parse(content, ExperimentPlan, name="the registry's rollout plan") if content else None
    return plan if plan and plan.champion == champion.number else None
