"""Looks at a ramp: counts, decides, stores the decision, carries it out.

The state is in three places. The registry holds the plan and which steps have begun. The prediction log holds the rows,
which each look counts again. The decisions file holds what is to be done before it is done, so that a look that
was killed is completed by the next one, with the same decision.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.serving_folder import Routing
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.canary import Decision, decide
from flywheel_ml.experiments.evidence import CanaryPlan, StepEvidence
from flywheel_ml.experiments.log_counts import ExperimentReader
from flywheel_ml.experiments.log_evidence import Models, read_evidence
from flywheel_ml.experiments.ramp import Ramp
from flywheel_ml.flows import rollout, run_state
from flywheel_ml.flows.canary import acting
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.flows.retraining.policy import FILE, LOCK_SECONDS
from flywheel_ml.flows.rollout import ExperimentPlan
from flywheel_ml.model.registration.registry import CHAMPION, Registry, Version
from flywheel_ml.model.registration.store import describe_error
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.monitoring.policy.decisions import CanaryAction, CanaryRecord, Outcome
from flywheel_ml.utils.errors import Busy, ConfigError, ProjectError
from flywheel_ml.utils.formatting import number, rows

NOTHING = "no canary is running"
MIN_KEPT_ROWS = 0.99
"""Share of the counted rows that the log must still have; the rows of a few people may have been erased."""
OVER = ("promote", "roll back", "expire")
"""Actions that end a ramp."""


class StoreAwayError(ProjectError):
    """The registry or the prediction log cannot be used now."""

    transient = True


class Look(NamedTuple):
    """What a look found and did.

    Attributes:
        action: that was decided; `hold` if nothing could be.
        reason: one sentence.
        record: with the evidence; None if nothing was counted.
        plan: of the experiment that was looked at; None without one.
        waits: whether the action waits for `approve`.
        outcome: how the action ended; None if it was not carried out.
    """

    action: CanaryAction
    reason: str
    record: CanaryRecord | None = None
    plan: ExperimentPlan | None = None
    waits: bool = False
    outcome: Outcome | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no experiment is running; false if that is not known."""
        return self.plan is None and self.outcome is None and self.reason == NOTHING

    @property
    def is_unknown(self) -> bool:
        """Whether nothing could be found out: the registry or the log is away, or another process looks."""
        return self.plan is None and self.outcome is None and not self.is_idle

    @property
    def is_over(self) -> bool:
        """Whether no ramp is running after this look."""
        return self.is_idle or (self.action in OVER and self.outcome is not None and self.outcome.succeeded)


def look(
    project: Project, settings: Settings, params: Params, approve: bool = False, now: datetime | None = None
) -> Look:
    """Look at the running ramp once, and carry out what is decided; holds if the registry or the log is away.

    Args:
        project: the project.
        settings: where registry, serving folder and log are.
        params: the policy; the ramp's own plan is the one that it started with.
        approve: carry out a promotion or rollback although the policy leaves it to a person, who now asks for it.
        now: the current time, aware.

    Raises:
        ProjectError: nothing waits for the approval, or another process looks.
    """
    try:
        with lock_project(run_state.FOLDER, "canary"):
            return _Controller(project, settings, params, now or datetime.now(UTC)).look(approve)
    except (Busy, StoreAwayError) as error:
        if approve:
            raise
        return Look("hold", str(error))


def inspect(project: Project, settings: Settings, params: Params, now: datetime | None = None) -> Look:
    """Count and decide like `look`, but change and store nothing."""
    try:
        return _Controller(project, settings, params, now or datetime.now(UTC)).inspect()
    except StoreAwayError as error:
        return Look("hold", str(error))


class _Controller:
    def __init__(self, project: Project, settings: Settings, params: Params, now: datetime) -> None:
        self._project, self._settings, self._params, self._now = project, settings, params, now

    def look(self, approve: bool) -> Look:
        with self._reporting_outage():
            registry, champion, plan = self._read()
            if left := decisions.read(FILE).find_pending_canary():
                return self._carry_out(registry, plan, left)
            if champion is None or plan is None or plan.ramp is None:
                return _describe_nothing(plan, approve)
            routing = rollout.sync(registry, self._settings, why="synced")
            models = self._find_models(registry, champion, plan, routing)
        decided = self._decide(models, plan, plan.ramp, routing)
        if approve:
            self._check_approval(decided)
        record = decided if not approve else decided.model_copy(update={"waits": False})
        self._store(record)
        if not record.is_due:
            return Look(record.action, record.reason, record, plan, record.waits)
        with self._reporting_outage():
            return self._carry_out(registry, plan, record)

    def inspect(self) -> Look:
        with self._reporting_outage():
            registry, champion, plan = self._read()
            if champion is None or plan is None or plan.ramp is None:
                return _describe_nothing(plan, approve=False)
            routing = serving_folder.read_routing(self._settings.serving_folder)
            models = self._find_models(registry, champion, plan, routing)
        record = self._decide(models, plan, plan.ramp, routing)
        return Look(record.action, record.reason, record, plan, record.waits)

    def _read(self) -> tuple[Registry, Version | None, ExperimentPlan | None]:
        name = Contract.load(paths.CONTRACT).name
        try:
            registry = Registry.open(self._settings, name, self._project)
        except Exception as error:
            raise StoreAwayError(self._describe_outage(error)) from error
        return registry, registry.find_alias(CHAMPION), rollout.read_plan(registry)

    @contextmanager
    def _reporting_outage(self) -> Iterator[None]:
        """Translate errors of the registry's store; those that a user can act on pass."""
        try:
            yield
        except ProjectError:
            raise
        except Exception as error:
            raise StoreAwayError(self._describe_outage(error)) from error

    def _describe_outage(self, error: Exception) -> str:
        if isinstance(error, OSError) and error.filename:  # Not of a connection.
            return f"'{error.filename}' cannot be used, the next look continues: {error.strerror}"
        reason = describe_error(error, self._settings)
        return f"the registry is unavailable, servers continue unchanged, the next look continues: {reason}"

    def _find_models(self, registry: Registry, champion: Version, plan: ExperimentPlan, routing: Routing) -> Models:
        if routing.champion is None:
            raise ProjectError("the serving folder has no champion; run `rollout sync`")
        path = serving_folder.bundle_folder(self._settings.serving_folder, routing.champion) / bundle.CONTRACT
        contract = Contract.load(path, accept_renamed=True)
        return Models(champion.digest, registry.get(plan.versions).digest, contract)

    def _decide(self, models: Models, plan: ExperimentPlan, ramp: Ramp, routing: Routing) -> CanaryRecord:
        horizon_us = self._params.monitor.label_horizon_us
        reader = ExperimentReader(self._settings.prediction_log, label_horizon_us=horizon_us)
        spans = list(ramp.list_spans(datetime.fromisoformat(routing.updated_at), self._now))
        try:
            evidence = read_evidence(reader, spans, models, ramp.plan)
        except ConfigError as error:
            reason = " ".join(str(error).split())
            raise StoreAwayError(f"the prediction log is unavailable, the next look continues: {reason}") from None
        decision = decide(evidence, ramp.plan, ramp.measure_days(self._now))
        last = decisions.read(FILE).find_last_canary(ramp.id)
        if last is not None:
            decision = _hold_to(last, decision, evidence, ramp.plan)
        if decision.action == "hold" and spans[-1].until_us <= spans[-1].since_us:
            reason = f"step {decision.step} has just begun; its rows count after {number(ramp.settle_seconds)} s"
            decision = decision._replace(action="continue", reason=reason)
        return self._build_record(plan, ramp, decision, evidence)

    def _build_record(
        self, plan: ExperimentPlan, ramp: Ramp, decision: Decision, evidence: list[StepEvidence]
    ) -> CanaryRecord:
        bounds = tuple(float(one) for one in decision.interval)
        is_known = decision.information > 0
        return CanaryRecord(
            id=f"{self._now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            at=self._now,
            ramp=ramp.id,
            begun=len(ramp.steps),
            step=decision.step,
            champion=plan.champion,
            version=plan.versions,
            action=decision.action,
            waits=_needs_approval(decision, self._params),
            reason=decision.reason,
            alpha=decision.alpha,
            interval=(bounds[0], bounds[1], bounds[2]) if is_known else None,
            guards={one.name: (float(one.evidence), one.threshold) for one in decision.guards},
            evidence=tuple(_to_json(one) for one in evidence),
            process=f"{os.getpid()}@{socket.gethostname()}",
        )

    def _check_approval(self, decided: CanaryRecord) -> None:
        """Raise unless the decision waits, and is the one that a person has seen; a new one is stored to be seen."""
        if not decided.waits:
            raise ProjectError(f"nothing waits for an approval: {decided.action}: {decided.reason}")
        last = decisions.read(FILE).find_last_canary(decided.ramp)
        if last is not None and last.waits and last.action != decided.action:
            self._store(decided)
            raise ProjectError(
                f"the decision that waited was {last.action}, and by now it is {decided.action}: {decided.reason}; "
                "nothing was done, approve again if you agree"
            )

    def _store(self, record: CanaryRecord) -> None:
        """Store a decision; one that repeats what the last look found, and leads to nothing, is not news."""
        with lock_project(run_state.FOLDER, "decisions", wait_seconds=LOCK_SECONDS):
            last = decisions.read(FILE).find_last_canary()
            if record.is_due or last is None or _summarise(last) != _summarise(record):
                decisions.append(FILE, record)

    def _carry_out(self, registry: Registry, plan: ExperimentPlan | None, record: CanaryRecord) -> Look:
        try:
            succeeded, text = True, acting.act(registry, self._settings, plan, record, self._now)
        except ProjectError as error:
            succeeded, text = False, str(error)
        outcome = Outcome(record=record.id, action=record.action, at=datetime.now(UTC), succeeded=succeeded, text=text)
        with lock_project(run_state.FOLDER, "decisions", wait_seconds=LOCK_SECONDS):
            decisions.append(FILE, outcome)
        return Look(record.action, record.reason, record, plan, outcome=outcome)


def _hold_to(last: CanaryRecord, decision: Decision, evidence: Sequence[StepEvidence], plan: CanaryPlan) -> Decision:
    """Return the decision, unless the last look at the ramp rules it out.

    A rollback that waits for a person stays decided: an anytime-valid test ends when it first rejects. If rows are gone
    since then, the rest would decide by another sample.
    """
    if last.waits and last.action == "roll back":
        return decision._replace(action="roll back", reason=last.reason)
    for at, (known, now) in enumerate(zip(last.evidence, evidence, strict=False)):
        step = plan.steps[now.step]
        if at == len(evidence) - 1 and step.share is not None:
            break  # Entities are counted instead of rows as soon as some have come twice.
        before = int(known["champion"]["rows"] + known["challenger"]["rows"])
        after = now.champion.rows + now.challenger.rows
        if after < before * MIN_KEPT_ROWS and decision.action != "expire":
            gone = (
                f"of the {rows(before)} that an earlier look counted in step {step.label}, the log has {after:,} left"
            )
            return decision._replace(action="hold", reason=f"{gone}; nothing is decided until the counts are right")
    return decision


def _describe_nothing(plan: ExperimentPlan | None, approve: bool) -> Look:
    reason = NOTHING
    if plan is not None:
        reason = f"an experiment with version {plan.versions} ({plan.kind}) is running, and it is no canary"
    if approve:
        raise ProjectError(f"nothing waits for an approval: {reason}")
    return Look("hold", reason)


def _needs_approval(decision: Decision, params: Params) -> bool:
    """Whether the policy leaves a decision to a person; errors of a canary have a policy of their own."""
    if decision.action == "promote":
        return params.canary.promotion == "approve"
    if decision.action != "roll back":
        return False
    if any(one.name == "errors" and one.tripped for one in decision.guards):
        return params.policy.canary_errors != "roll back" and params.canary.rollback == "approve"
    return params.canary.rollback == "approve"


def _summarise(record: CanaryRecord) -> tuple[Any, ...]:
    # A reason has counts that change at every look.
    return record.ramp, record.begun, record.action, record.waits


def _to_json(evidence: StepEvidence) -> dict[str, Any]:
    """Convert the counts to values for JSON, without empty histograms."""
    variants = {
        name: {"rows": one.rows, "errors": one.errors, "losses": [float(part) for part in one.losses]}
        | ({"latencies": list(one.latencies)} if one.latencies else {})
        for name, one in (("champion", evidence.champion), ("challenger", evidence.challenger))
    }
    return {"step": evidence.step, **variants, "paired": [float(part) for part in evidence.paired]}
