"""Decides about a canary from what was counted in each step; no clock, no files, no random numbers.

The same counts give the same decision, so a controller that was killed counts again and continues.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from flywheel_ml.experiments import guards
from flywheel_ml.experiments.evidence import CanaryPlan, Step, StepEvidence, find_fault
from flywheel_ml.experiments.sequential import (
    Interval,
    Score,
    combine_strata,
    compute_interval,
    compute_log_evidence,
    score_paired,
    score_unpaired,
)
from flywheel_ml.utils.formatting import number, percent, rows

Action = Literal["continue", "advance", "promote", "roll back", "hold", "expire"]
"""`continue` collects more rows in the step; `hold` does too, and a person should look; `expire` ends the canary
without a promotion, because the deadline passed."""


class Guard(NamedTuple):
    """A guard's log evidence against the challenger, and the logarithm of 1/α at which it trips."""

    name: str
    evidence: float
    threshold: float
    detail: str

    @property
    def tripped(self) -> bool:
        """Whether the guard rolls the canary back."""
        return self.evidence >= self.threshold


class Decision(NamedTuple):
    """What to do, and why.

    Attributes:
        action: what to do.
        reason: one sentence.
        step: name of the step it is about.
        interval: confidence sequence of the difference in mean loss, above zero if the challenger is worse. Its lower
            bound errs with α `worse`, its upper one with α `promote`.
        information: of the interval, in 1 / units of the loss².
        guards: all guards.
        alpha: spent over the whole ramp, whatever is decided and however often it is asked.
    """

    action: Action
    reason: str
    step: str
    interval: Interval
    information: float
    guards: tuple[Guard, ...]
    alpha: float


def decide(evidence: Sequence[StepEvidence], plan: CanaryPlan, elapsed_days: float = 0.0) -> Decision:
    """Decide about a canary.

    Rolls back if a guard trips, or if the loss is proven to be worse than the champion's. Promotes after the last step
    if the loss is proven to be worse by less than the margin. Anything unusual means hold.

    Args:
        evidence: all steps so far, in order; the last one is running.
        plan: of the canary.
        elapsed_days: since the canary started.
    """
    action: Action
    score, interval = Score(), Interval(0.0, -math.inf, math.inf)
    found: tuple[Guard, ...] = ()
    fault, step = _check_evidence(evidence, plan)
    if fault:
        action, reason = "hold", fault
    else:
        score, found = score_loss(evidence, plan), tuple(list_guards(evidence, plan))
        alphas = (plan.budget.worse, plan.budget.promote)
        interval = Interval(*(float(bound) for bound in compute_interval(score, alphas, plan.margin)))
        action, reason = _choose(evidence, plan, interval, found)
    if elapsed_days >= plan.deadline_days and action not in ("promote", "roll back"):
        shown = number(plan.deadline_days)
        action, reason = "expire", f"not decided within {shown} days, so not promoted: {reason}"
    return Decision(action, reason, step, interval, float(score.information), found, plan.budget.total)


def score_loss(evidence: Sequence[StepEvidence], plan: CanaryPlan) -> Score:
    """Return the evidence about the loss that decides: each step is a stratum."""
    floor = plan.margin * plan.loss_scale
    if plan.comparison == "paired":
        return combine_strata(score_paired(one.paired, floor) for one in evidence)
    return combine_strata(
        score_unpaired(one.champion.losses, one.challenger.losses, floor)
        for one in evidence
        if plan.steps[one.step].share is not None
    )


def list_guards(evidence: Sequence[StepEvidence], plan: CanaryPlan) -> Iterator[Guard]:
    """Yield the guards, each over all steps."""
    budget, steps = plan.budget, [plan.steps[one.step] for one in evidence]
    shares = [step.share or 0.5 for step in steps]
    assigned = [np.array((one.champion.rows, one.challenger.rows)) for one in evidence]
    failed = [np.array((one.champion.errors, one.challenger.errors)) for one in evidence]
    logs = [
        guards.log_errors(errors, of, share, plan.max_error_ratio, plan.max_error_rate)
        for errors, of, share in zip(failed, assigned, shares, strict=True)
    ]
    details = [
        f"{errors[1]:,} of its {rows(of[1])} failed, {errors[0]:,} of the champion's {of[0]:,}"
        for errors, of in zip(failed, assigned, strict=True)
    ]
    yield _build_guard("errors", steps, logs, details, budget.look_errors)
    timed = [at for at, one in enumerate(evidence) if one.champion.latencies and one.challenger.latencies]
    logs = [
        guards.log_latency(np.array((evidence[at].champion.latencies, evidence[at].challenger.latencies)), shares[at])
        for at in timed
    ]
    details = ["more of its rows are slow than of the champion's, by a factor above 1.5"] * len(timed)
    yield _build_guard("latency", [steps[at] for at in timed], logs, details, budget.latency)
    split = [at for at, step in enumerate(steps) if step.share is not None and assigned[at][1] > 0]
    logs = [guards.log_sample_ratio(assigned[at], (1 - shares[at], shares[at])) for at in split]
    details = [
        f"it was assigned {assigned[at][1]:,} of {rows(assigned[at].sum())}, planned {percent(shares[at])}"
        for at in split
    ]
    yield _build_guard("sample ratio", [steps[at] for at in split], logs, details, budget.sample_ratio)
    if plan.comparison == "randomised":
        # The shadow's rows say how well it predicts, not what its predictions bring about: they can only reject it.
        shadow = combine_strata(
            score_paired(one.paired, plan.margin * plan.loss_scale)
            for one, step in zip(evidence, steps, strict=True)
            if step.share is None
        )
        estimate = shadow.score / shadow.information if shadow.information else 0.0
        detail = f"as a shadow its loss was higher by {number(float(estimate))}"
        logged = float(compute_log_evidence(shadow, plan.margin))
        yield Guard("shadow", logged, -math.log(budget.shadow), detail)


def _check_evidence(evidence: Sequence[StepEvidence], plan: CanaryPlan) -> tuple[str, str]:
    """Return what makes the evidence unusable (empty if nothing does), and the name of its step."""
    for one in evidence:
        if fault := find_fault(one, plan):
            step = plan.steps[one.step].label if 0 <= one.step < len(plan.steps) else str(one.step)
            return f"{fault}; nothing is decided until the counts are right", step
    return ("", plan.steps[evidence[-1].step].label) if evidence else ("no step has started", "")


def _choose(
    evidence: Sequence[StepEvidence], plan: CanaryPlan, interval: Interval, found: Sequence[Guard]
) -> tuple[Action, str]:
    shown = f"loss {_show_interval(interval)}"
    for guard in found:
        if guard.tripped:
            return "roll back", f"{guard.name}: {guard.detail}"
    if interval.low > 0:
        return "roll back", f"{shown}: it is worse than the champion"
    return _find_gap(evidence[-1], plan, shown) or _complete_step(evidence[-1], plan, interval, shown)


def _find_gap(current: StepEvidence, plan: CanaryPlan, shown: str) -> tuple[Action, str] | None:
    """Return what to do if the running step has not enough rows or labels."""
    step, arrived = plan.steps[current.step], current.challenger.rows
    needs_labels = step.min_labels if step.share is None or plan.comparison == "randomised" else 0
    labelled = current.paired.rows if step.share is None else current.challenger.losses.rows
    if arrived == 0:
        return "hold", f"no traffic reaches the challenger in step {step.label}"
    if needs_labels and labelled == 0:
        return "hold", f"no labels have arrived in step {step.label}"
    if arrived < step.min_rows:
        return "continue", f"{arrived:,} of {rows(step.min_rows)} in step {step.label}; {shown}"
    if labelled < needs_labels:
        return "continue", f"{labelled:,.0f} of {needs_labels:,} labels in step {step.label}; {shown}"
    return None


def _complete_step(current: StepEvidence, plan: CanaryPlan, interval: Interval, shown: str) -> tuple[Action, str]:
    is_last, is_decided = current.step == len(plan.steps) - 1, interval.high < plan.margin
    limit = f"the margin of {number(plan.margin)}"
    if not is_decided and (is_last or plan.comparison == "paired"):
        return "continue", f"{shown}: not yet proven to be within {limit}"
    if is_last:
        return "promote", f"{shown}: it is worse by less than {limit}, and no guard objects"
    return "advance", f"step {plan.steps[current.step].label} is complete, and no guard objects; {shown}"


def _build_guard(
    name: str, steps: Sequence[Step], logs: Sequence[np.ndarray], details: Sequence[str], alpha: float
) -> Guard:
    """Build a guard that is described by its most suspicious step."""
    worst = max(range(len(steps)), key=lambda at: float(logs[at]), default=None)
    detail = "not measured" if worst is None else f"in step {steps[worst].label}, {details[worst]}"
    return Guard(name, float(guards.combine_strata(logs)), -math.log(alpha), detail)


def _show_interval(interval: Interval) -> str:
    if math.isinf(interval.low):
        return "difference unknown"
    signed = [("+" if bound > 0 else "") + number(float(bound)) for bound in interval]
    return f"{signed[0]} ({signed[1]} to {signed[2]})"
