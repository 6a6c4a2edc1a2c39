"""Carries out what was decided about a canary; repeating it after a kill completes it."""

from datetime import datetime

from flywheel_ml.core import serving_folder
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout
from flywheel_ml.flows.rollout import ExperimentPlan, format_share
from flywheel_ml.model.registration.registry import CHAMPION, Registry
from flywheel_ml.monitoring.policy.decisions import CanaryRecord
from flywheel_ml.utils.errors import ProjectError


def act(
    registry: Registry, settings: Settings, plan: ExperimentPlan | None, record: CanaryRecord, now: datetime
) -> str:
    """Carry out a decision; returns a sentence about what was done.

    Args:
        registry: the registry.
        settings: where the serving folder is.
        plan: of the running experiment, as the registry has it now; None if there is none.
        record: the decision.
        now: the current time, aware.

    Raises:
        ProjectError: the experiment was changed in the meantime, or the change is not possible.
    """
    is_same = plan is not None and plan.ramp is not None and plan.ramp.id == record.ramp
    if plan is not None and not is_same:
        raise ProjectError(f"an experiment with version {plan.versions} was started in the meantime; nothing was done")
    if record.action == "advance":
        return _advance(registry, settings, plan, record, now)
    if record.action == "promote":
        return _promote(registry, settings, plan, record)
    return _end(registry, settings, record, rejects=record.action == "roll back")


def _advance(
    registry: Registry, settings: Settings, plan: ExperimentPlan | None, record: CanaryRecord, now: datetime
) -> str:
    if plan is None or plan.ramp is None:
        raise ProjectError("the experiment was ended in the meantime; nothing was done")
    if len(plan.ramp.steps) > record.begun:  # A look was killed after the registry had the next step.
        routing = rollout.sync(registry, settings, why=_explain(record))
    else:
        since = serving_folder.read_routing(settings.serving_folder).updated_at
        ramp = plan.ramp.advance(datetime.fromisoformat(since), now)
        routing = rollout.advance_ramp(registry, settings, plan, ramp, _explain(record))
    return f"version {record.version} answers {format_share(sum(one.share for one in routing.challengers))}"


def _promote(registry: Registry, settings: Settings, plan: ExperimentPlan | None, record: CanaryRecord) -> str:
    champion, version = registry.find_alias(CHAMPION), registry.get(record.version)
    if version.rolled_back:
        raise ProjectError(f"version {version.number} was rolled back in the meantime; nothing was done")
    if champion is None or champion.number not in (record.champion, record.version):
        found = champion.number if champion else "none"
        raise ProjectError(f"version {found} became champion in the meantime; nothing was done")
    if plan is None and champion.number == record.champion:
        # A promotion ends the plan first. If it was killed then, the folder still has the experiment.
        tried = serving_folder.read_routing(settings.serving_folder).experiments
        if record.version not in [one.ref.version for one in tried]:
            raise ProjectError("the experiment was ended in the meantime; nothing was done")
    rollout.promote(registry, settings, record.version, why=_explain(record))
    return f"version {record.version} is champion"


def _end(registry: Registry, settings: Settings, record: CanaryRecord, rejects: bool) -> str:
    champion = registry.find_alias(CHAMPION)
    if champion is not None and champion.number == record.version:
        raise ProjectError(f"version {record.version} became champion in the meantime; nothing was done")
    if rejects:
        registry.reject(record.version, _explain(record))
    routing = rollout.abort(registry, settings, why=_explain(record))
    return f"{rollout.describe_routing(routing)} answers everything"


def _explain(record: CanaryRecord) -> str:
    return f"canary: {record.action}: {record.reason}"
