"""What a schedule, or a loop, calls: looks at the running ramp, or starts one for a new challenger."""

import time
from collections.abc import Callable

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout
from flywheel_ml.flows.canary import starting
from flywheel_ml.flows.canary.controller import Look, look
from flywheel_ml.model.registration.registry import CHALLENGER, Registry


def look_or_start(project: Project, settings: Settings, params: Params) -> Look:
    """Look at the running ramp; without an experiment, start one for a new challenger if `canary.auto_start` is true.

    A challenger that was in an experiment before is not new: a person ended it, or it has expired.
    """
    found = look(project, settings, params)
    if not (params.canary.auto_start and found.is_idle):
        return found
    registry = Registry.open(settings, Contract.load(paths.CONTRACT).name, project)
    challenger = registry.find_alias(CHALLENGER)
    facts = [entry.get(rollout.EXPERIMENT) for entry in rollout.read_audit(settings.serving_folder)]
    tried = {arm["digest"] for one in facts if one for arm in one["arms"]}
    if challenger is None or challenger.digest in tried:
        return found
    starting.start(project, settings, params, challenger.number)
    return Look("continue", f"a canary of version {challenger.number} was started")


def watch(look_once: Callable[[], Look], on_look: Callable[[Look], object], seconds: float) -> Look:
    """Look every `seconds` seconds until the ramp is over; reports each look that differs from the one before.

    Args:
        look_once: looks at the ramp.
        on_look: called with a look.
        seconds: between two looks.
    """
    reported: tuple[str, bool, str] | None = None
    while True:
        found = look_once()
        summary = found.action, found.waits, "" if found.record is None else found.record.step
        if summary != reported:
            on_look(found)
        reported = summary
        if found.is_over:
            return found
        time.sleep(seconds)
