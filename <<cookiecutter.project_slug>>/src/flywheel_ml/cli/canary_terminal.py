"""Terminal output of the canary: its steps, guards and decisions."""

import math
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli.terminal import console
from flywheel_ml.utils.formatting import number

if TYPE_CHECKING:
    from flywheel_ml.flows.canary.controller import Look
    from flywheel_ml.flows.rollout import ExperimentPlan
    from flywheel_ml.monitoring.policy.decisions import CanaryRecord

_COLORS = {"promote": "green", "advance": "green", "roll back": "red", "expire": "red", "hold": "yellow"}


def show_look(found: "Look") -> None:
    """Print the evidence of a look, what was decided, and how it ended."""
    if found.record is not None and found.plan is not None:
        _show_evidence(found.record, found.plan)
    color = _COLORS.get(found.action, "cyan")
    waits = " (waits for `make canary-approve`)" if found.waits else ""
    console.print(f"[bold {color}]{found.action}[/]{waits}: {escape(found.reason)}", soft_wrap=True)
    if found.outcome is not None:
        mark = "[green]done[/]" if found.outcome.succeeded else "[red]failed[/]"
        console.print(f"  {mark}: {escape(found.outcome.text)}", soft_wrap=True)


def _show_evidence(record: "CanaryRecord", plan: "ExperimentPlan") -> None:
    assert plan.ramp is not None
    began, canary = plan.ramp.steps[0].since, plan.ramp.plan
    console.print(
        f"Canary of version {record.version} next to champion version {record.champion}, since {began:%F %R} UTC; "
        f"{max(canary.deadline_days - plan.ramp.measure_days(record.at), 0):.1f} days are left.",
        soft_wrap=True,
    )
    table = Table("step", "rows", "challenger's", "errors", "labelled", "difference", box=None, header_style="bold")
    for one in record.evidence:
        table.add_row(*_build_row(one, canary.steps[one["step"]].label))
    console.print(table)
    unit = {"log": "log loss", "zero_one": "error rate", "squared": "squared error"}[canary.loss]
    if record.interval is not None:
        low, high = (number(bound) if math.isfinite(bound) else "?" for bound in record.interval[1:])
        margin = number(canary.margin)
        console.print(f"{unit}: {number(record.interval[0])} ({low} to {high}), margin {margin}", soft_wrap=True)
    guards = ", ".join(f"{name} {max(found, 0) / limit:.0%}" for name, (found, limit) in record.guards.items())
    console.print(f"guards, as a share of the evidence that trips them: {guards}", soft_wrap=True)


def _build_row(one: dict[str, Any], label: str) -> tuple[str, ...]:
    """Describe one step; the difference of losses is the challenger's minus the champion's."""
    champion, challenger = one["champion"], one["challenger"]
    is_shadow = label == "shadow"
    rows = champion["rows"] if is_shadow else champion["rows"] + challenger["rows"]
    labelled, total, _ = one["paired"]
    difference = total / labelled if labelled else math.nan
    if not is_shadow:
        (others, of_champion, _), (labelled, of_challenger, _) = champion["losses"], challenger["losses"]
        difference = of_challenger / labelled - of_champion / others if labelled and others else math.nan
    errors = f"{challenger['errors']:,}"
    shown = "" if math.isnan(difference) else number(difference)
    counted = f"{labelled:,.0f}" if is_shadow or labelled else ""
    return label, f"{rows:,}", f"{challenger['rows']:,}", errors, counted, shown
