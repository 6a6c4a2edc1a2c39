"""Decides what the findings of a window lead to; pure, from the policy of params.yaml and earlier windows."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

from flywheel_ml.core.params import Params
from flywheel_ml.core.retraining_params import Action, Finding, PolicyParams
from flywheel_ml.monitoring.result import Result
from flywheel_ml.utils import config_model, formatting

State = Literal["present", "absent", "unknown"]
IMMEDIATE: tuple[Finding, ...] = ("canary_errors",)
"""Findings that are rolled back in the first window, and again in each later one: a canary that raises errors costs
answers. Their rollback ends the canary, and the champion stays, so it does not count for its cool-down."""


class Observation(config_model.StrictModel):
    """Whether a window has a finding, and the evidence; `unknown` if the window has too little data to say."""

    finding: Finding
    state: State
    evidence: str = ""


class Decision(config_model.StrictModel):
    """What a finding leads to, and why not to more."""

    finding: Finding
    action: Action
    reason: str


class Record(config_model.StrictModel):
    """One window: what was observed about a model, and what was decided.

    `process` is the one that carries the decisions out, as `pid@host`.
    """

    kind: Literal["window"] = "window"
    id: str
    at: datetime
    model: str
    digest: str
    source: str
    process: str
    observations: tuple[Observation, ...]
    decisions: tuple[Decision, ...]


def observe(
    result: Result, params: Params, age: timedelta | None, canary_errors: str | None = ""
) -> tuple[Observation, ...]:
    """List what a window shows about each finding.

    Args:
        result: what monitoring found.
        params: the largest age of a model.
        age: time since the model was trained, if it is known.
        canary_errors: evidence that an experiment raises errors; empty without, None if it is not known.
    """
    canary = _make("canary_errors", bool(canary_errors), canary_errors is not None, canary_errors or "")
    return canary, *_observe(result, params.policy, age)


def _observe(result: Result, policy: PolicyParams, age: timedelta | None) -> Iterator[Observation]:
    drift, quality = result.drift, result.quality
    is_compared = drift.verdict != "insufficient data"
    yield _make("drift", bool(drift.drifted), is_compared, drift.reason)
    yield _make("prediction_drift", drift.prediction_drifted, is_compared, drift.reason)
    is_judged = quality.verdict != "insufficient data"
    yield _make("degraded_quality", quality.verdict == "degraded", is_judged, quality.reason)
    broken = ", ".join(f"{one.column}: {formatting.rows(one.rows)} {one.rule}" for one in result.violations[:5])
    yield _make("contract_violations", bool(result.violations), result.volume.rows > 0, broken)
    is_known = age is not None and policy.max_model_age_days is not None
    too_old = "" if age is None else describe_age(age, policy)
    yield _make("stale_model", bool(too_old), is_known, too_old)


def describe_age(age: timedelta, policy: PolicyParams) -> str:
    """Describe the age of a model that is older than the policy allows; empty if it is not."""
    limit, days = policy.max_model_age_days, age / timedelta(days=1)
    return f"trained {days:.1f} days ago, at most {limit:g}" if limit is not None and days > limit else ""


def _make(finding: Finding, is_present: bool, is_known: bool, evidence: str) -> Observation:
    state: State = "unknown" if not is_known else "present" if is_present else "absent"
    return Observation(finding=finding, state=state, evidence=evidence if state == "present" else "")


def decide(
    observations: Sequence[Observation], history: Sequence[Record], policy: PolicyParams, now: datetime, digest: str
) -> tuple[Decision, ...]:
    """Decide what each finding that is present leads to.

    `retrain` and `roll back` wait for the finding in `policy.windows` consecutive windows of the same model, and are
    decided once: again only after a window without the finding, or another model, and after the cool-down. Windows
    that cannot say count neither way. Meanwhile the finding leads to an alert. A rollback for a finding of `IMMEDIATE`
    never waits.

    Args:
        observations: what the window shows.
        history: earlier windows, oldest first.
        policy: the actions.
        now: current time, aware.
        digest: of the model that the window is about.
    """
    found: list[Decision] = []
    for one in observations:
        if one.state != "present":
            continue
        action = policy.get_action(one.finding)
        if action in ("none", "alert"):
            found.append(Decision(finding=one.finding, action=action, reason="as the policy says"))
            continue
        wait = _find_reason_to_wait(one.finding, action, history, policy, now, digest)
        if same := [other.finding for other in found if other.action == action]:
            wait = f"{action} was decided for {same[0]}"
        reason = wait or f"present in {_needed(one.finding, action, policy)} window(s) in a row"
        found.append(Decision(finding=one.finding, action="alert" if wait else action, reason=reason))
    return tuple(found)


def _is_immediate(finding: Finding, action: Action) -> bool:
    return finding in IMMEDIATE and action == "roll back"


def _needed(finding: Finding, action: Action, policy: PolicyParams) -> int:
    return 1 if _is_immediate(finding, action) else policy.windows


def _find_reason_to_wait(
    finding: Finding, action: Action, history: Sequence[Record], policy: PolicyParams, now: datetime, digest: str
) -> str:
    """Return why an action is not due yet; empty if it is."""
    if _is_immediate(finding, action):
        return ""
    if _is_decided(finding, action, history, digest):
        return f"{action} was decided; the next one needs a window without the finding first"
    cool_down = timedelta(days=policy.cool_down_days)
    last = max((one.at for one in history if any(_counts(made, action) for made in one.decisions)), default=None)
    if last is not None and now - last < cool_down:
        return f"{action} was decided on {last:%F %R} UTC; the cool-down ends {last + cool_down:%F %R}"
    seen = 1 + _count_consecutive(finding, history, digest)
    needed = _needed(finding, action, policy)
    return f"window {seen} of {needed} in a row before {action}" if seen < needed else ""


def _counts(made: Decision, action: Action) -> bool:
    return made.action == action and not _is_immediate(made.finding, made.action)


def _is_decided(finding: Finding, action: Action, history: Sequence[Record], digest: str) -> bool:
    """Whether the action was decided for the finding, which has been present since."""
    for record in reversed(history):
        if record.digest != digest or _get_state(finding, record) == "absent":
            return False
        if any((made.finding, made.action) == (finding, action) for made in record.decisions):
            return True
    return False


def _count_consecutive(finding: Finding, history: Sequence[Record], digest: str) -> int:
    count = 0
    for record in reversed(history):
        state = _get_state(finding, record)
        if record.digest != digest or state == "absent":
            break
        count += state == "present"
    return count


def _get_state(finding: Finding, record: Record) -> State:
    return next((one.state for one in record.observations if one.finding == finding), "unknown")
