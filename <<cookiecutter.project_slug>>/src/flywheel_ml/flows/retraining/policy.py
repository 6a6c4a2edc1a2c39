"""Carries out the policy of params.yaml after a monitored window: alert, retrain or roll back; stores each decision."""

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.retraining_params import Action, Finding, PolicyParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import run_state
from flywheel_ml.flows.canary.errors import ERRORS_ANCHOR, find_errors, find_failing
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.retraining.age import AGE_ANCHOR, find_age
from flywheel_ml.flows.retraining.request import Interrupted
from flywheel_ml.monitoring import alerts
from flywheel_ml.monitoring.alerting.delivery import AlertError
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.monitoring.policy.deciding import IMMEDIATE, Record, decide, observe
from flywheel_ml.monitoring.policy.decisions import Attempt, Outcome, Pending
from flywheel_ml.monitoring.result import Result
from flywheel_ml.monitoring.run import MonitoringRun
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.process import is_alive

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

FILE = run_state.FOLDER / "decisions.jsonl"
LOCK_SECONDS = 60
_ANCHORS: dict[str, tuple[Finding, ...]] = {
    "drift": ("drift", "prediction_drift"),
    "degraded-quality": ("degraded_quality",),
    "contract-violations": ("contract_violations",),
    ERRORS_ANCHOR: ("canary_errors",),
    AGE_ANCHOR: ("stale_model",),
}
"""Section of the runbook that an alert names → the findings that it is about."""


class Applied(NamedTuple):
    """The record of a window, and the outcomes of the actions that were carried out."""

    record: Record
    outcomes: list[Outcome]


def apply_policy(project: Project, settings: Settings, params: Params, result: Result) -> Applied:
    """Decide what a window leads to, store the decision with its evidence, and carry it out.

    The window must be about the champion and end now. A decision that a killed process did not complete is carried
    out too. An action that fails is stored as such; monitoring itself goes on.
    """
    observations = observe(
        result, params, find_age(settings, result.at), find_errors(settings, params, datetime.now(UTC))
    )
    with lock_project(run_state.FOLDER, "decisions", wait_seconds=LOCK_SECONDS):
        known = decisions.read(FILE)
        record = Record(
            id=f"{result.at:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            at=result.at,
            model=f"{result.model.name} {result.model.version}",
            digest=result.model.digest,
            source=result.source,
            process=_name_process(),
            observations=observations,
            decisions=decide(observations, known.records, params.policy, result.at, result.model.digest),
        )
        left = [one for one in known.list_pending() if not _is_running(one.process)]
        attempts = [
            Attempt(record=one.record.id, action=one.decision.action, at=_now(), process=_name_process())
            for one in left
        ]
        decisions.append(FILE, record, *attempts)
    due = [Pending(record, one, record.process) for one in record.decisions if one.action in decisions.ACTING]
    return Applied(record, list(_carry_out(project, settings, params, [*left, *due])))


def act_on(
    project: Project,
    settings: Settings,
    params: Params,
    watch: Callable[[Callable[[MonitoringRun], object]], object],
    on_applied: Callable[[Applied], object] = id,
) -> MonitoringRun:
    """Monitor a window and carry out the policy, even if an alert cannot be delivered.

    Args:
        project, settings, params: as for `apply_policy`.
        watch: monitors the window, and calls its argument with the result before it delivers alerts.
        on_applied: called with what was decided and done.

    Raises:
        AlertError: a sink did not accept its alerts, which are kept; the policy was carried out before.
    """
    found: list[MonitoringRun] = []
    failure: AlertError | None = None
    try:
        watch(found.append)
    except AlertError as error:
        failure = error
    if found:
        on_applied(apply_policy(project, settings, params, found[0].result))
    if failure is not None:
        raise failure
    return found[0]


def silence(rules: Sequence[alerts.Rule], policy: PolicyParams) -> tuple[alerts.Rule, ...]:
    """Drop what the policy maps to `none` from what the rules yield."""

    def wrap(rule: alerts.Rule) -> alerts.Rule:
        def call(result: Result) -> Iterator[alerts.Finding]:
            return (found for found in rule(result) if not is_silent(found.anchor))

        return call

    def is_silent(anchor: str) -> bool:
        about = _ANCHORS.get(anchor, ())
        return bool(about) and all(policy.get_action(finding) == "none" for finding in about)

    return tuple(map(wrap, rules))


def _carry_out(project: Project, settings: Settings, params: Params, due: Sequence[Pending]) -> Iterator[Outcome]:
    actions: dict[Action, Callable[[Pending], str]] = {
        "retrain": lambda _: _retrain(project, settings, params.policy),
        "roll back": lambda one: _roll_back(project, settings, params, one),
    }
    for one in due:
        succeeded = True
        try:
            text = actions[one.decision.action](one)
        except Interrupted:
            continue  # The next window completes it.
        except ProjectError as error:
            succeeded, text = False, str(error)
        outcome = Outcome(record=one.record.id, action=one.decision.action, at=_now(), succeeded=succeeded, text=text)
        with lock_project(run_state.FOLDER, "decisions", wait_seconds=LOCK_SECONDS):
            decisions.append(FILE, outcome)
        yield outcome


def _retrain(project: Project, settings: Settings, policy: PolicyParams) -> str:
    from flywheel_ml.flows.retraining import launch

    found = launch.retrain(project, settings, Progress(), with_log=policy.with_log)
    refusal = f": {found.refusal}" if found.refusal else ""
    return f"version {found.version} is {found.role}, on branch {found.branch}{refusal}"


def _roll_back(project: Project, settings: Settings, params: Params, one: Pending) -> str:
    """Roll back the model that the decision was about, or the experiment; later ones are left alone."""
    from flywheel_ml.flows import rollout
    from flywheel_ml.model.registration.registry import CHAMPION, Registry

    registry = Registry.open(settings, Contract.load(paths.CONTRACT).name, project)
    if one.decision.finding in IMMEDIATE:
        return _end_experiment(registry, settings, params, one)
    champion = registry.find_alias(CHAMPION)
    if champion is None or champion.digest != one.record.digest:
        return f"{one.record.model} is no longer champion; nothing was rolled back"
    why = f"policy: {one.decision.finding}: {_get_evidence(one)}"
    back = rollout.rollback(registry, settings, why)
    return f"version {back.number} is champion again"


def _end_experiment(registry: "Registry", settings: Settings, params: Params, one: Pending) -> str:
    from flywheel_ml.flows import rollout

    plan = rollout.read_plan(registry)
    # If a killed process left this, another experiment may run by now.
    if plan is None or not (failing := find_failing(settings, params, _now())):
        return "the experiment is over; nothing was rolled back"
    why = f"policy: {one.decision.finding}: {_get_evidence(one)}"
    for arm in plan.arms:
        if arm.version in failing:
            registry.reject(arm.version, why)
    rollout.abort(registry, settings, why)
    return f"the experiment with version {plan.versions} was ended"


def _get_evidence(one: Pending) -> str:
    return next((found.evidence for found in one.record.observations if found.finding == one.decision.finding), "")


def _name_process() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"


def _is_running(process: str) -> bool:
    """Whether another process may still carry a decision out; one of another machine may."""
    pid, _, host = process.partition("@")
    return process != _name_process() and (host != socket.gethostname() or is_alive(int(pid)))


def _now() -> datetime:
    return datetime.now(UTC)
