"""Decides what the findings of a period lead to, and carries it out; the policy is that of `monitoring/policy`."""

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from flywheel_ml.core.params import Params
from flywheel_ml.flows.retraining.policy import FILE
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.monitoring.policy.deciding import Decision, Record, decide, observe
from flywheel_ml.monitoring.policy.decisions import Outcome
from flywheel_ml.monitoring.replay.result import Retrained
from flywheel_ml.monitoring.result import Result
from flywheel_ml.utils.errors import ProjectError


class Carried(NamedTuple):
    """What was decided, and the retraining that it led to, or why it failed."""

    decisions: tuple[Decision, ...]
    retrained: Retrained | None = None
    error: str = ""


def apply_policy(label: str, params: Params, result: Result, retrain: Callable[[], Retrained] | None) -> Carried:
    """Decide about a period, store the decision as the hourly policy does, and retrain if it says so.

    Each period stands for hundreds of windows, so it is decided without the earlier ones: a retraining that was
    refused is tried again in the next period.

    Args:
        label: name of the period.
        params: with the policy of the replay.
        result: what monitoring found.
        retrain: retrains; None if nothing would come of it, because the replay ends.
    """
    observations = observe(result, params, None)
    record = Record(
        id=label,
        at=result.at,
        model=f"{result.model.name} {result.model.version}",
        digest=result.model.digest,
        source=result.source,
        process=f"{os.getpid()}@{socket.gethostname()}",
        observations=observations,
        decisions=decide(observations, [], params.policy, result.at, result.model.digest),
    )
    decisions.append(FILE, record)
    if retrain is None or all(one.action != "retrain" for one in record.decisions):
        return Carried(record.decisions)
    found, error = None, ""
    try:
        found = retrain()
        text = f"version {found.version} is {found.role}" + (f": {found.refusal}" if found.refusal else "")
    except ProjectError as failure:
        text = error = str(failure)
    succeeded = found is not None
    decisions.append(
        FILE, Outcome(record=label, action="retrain", at=datetime.now(UTC), succeeded=succeeded, text=text)
    )
    return Carried(record.decisions, found, error)
