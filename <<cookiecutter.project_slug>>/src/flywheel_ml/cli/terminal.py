"""Terminal output of the command line: tables, verdicts and next steps."""

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flywheel_ml.core.settings import Settings
from flywheel_ml.utils import formatting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flywheel_ml.core.serving_folder import Routing
    from flywheel_ml.data.adoption.adopt import Examination
    from flywheel_ml.flows.explaining import ExplainedPrediction
    from flywheel_ml.flows.retraining.policy import Applied
    from flywheel_ml.model.evaluation.gate import GateResult
    from flywheel_ml.monitoring.alerting.delivery import Delivery
    from flywheel_ml.monitoring.alerting.outbox import OpenAlert
    from flywheel_ml.monitoring.run import MonitoringRun

MAX_COLUMNS = 60
BAR, SHOWN_CHARACTERS = 12, 24
"""Maximum characters of a bar, and of a value, in a table."""

console = Console(highlight=False)


def show_rollout_status(now: "Routing", server: str, settings: Settings) -> None:
    """Print share and statistics of each variant, and the state of the circuit breaker."""
    from flywheel_ml.flows import rollout
    from flywheel_ml.flows.rollout import status

    table = Table("variant", "version", "digest", "share", "since (UTC)", "rows", "mean score", "ms", "last row")
    table.box, table.header_style = None, "bold"
    found = status.list_variant_statuses(now, settings)
    for one in found:
        tally, cells = one.tally, ["0", "", "", ""]
        if tally:
            last = datetime.fromtimestamp(tally.last_us / 1e6, tz=UTC)
            cells = [
                f"{tally.rows:,}",
                "–" if math.isnan(tally.mean_score) else f"{tally.mean_score:.4f}",
                f"{tally.mean_latency_us / 1000:.2f}",
                f"{last:%m-%d %R}",
            ]
        share = "" if one.share is None else rollout.format_share(one.share)
        since = one.since[5:16].replace("T", " ")
        table.add_row(one.variant, one.version, formatting.short_digest(one.digest), share, since, *cells)
    console.print(table)
    if rows_without_digest := sum(one.rows_without_digest for one in found):
        console.print(
            f"{formatting.rows(rows_without_digest)} of these were logged before digests; counted by version alone",
            soft_wrap=True,
        )
    for state in status.describe_breakers(now, server, settings):
        console.print(f"breaker: {escape(state)}", soft_wrap=True)


def show_explanation(found: "ExplainedPrediction") -> None:
    """Print a prediction, and the contribution of each column to its score."""
    logged, why = found.prediction, found.explanation
    when = datetime.fromtimestamp(logged.timestamp_us / 1e6, tz=UTC)
    console.print(
        f"Prediction {escape(logged.id)} of {when:%F %T} UTC, by version {escape(logged.model_version)} "
        f"({escape(logged.variant)}, sha256 {formatting.short_digest(logged.model_digest)}): "
        f"[bold]{escape(_to_text(why.prediction))}[/]",
        soft_wrap=True,
    )
    largest = max(abs(one.contribution) for one in why.contributions)
    places = _count_decimals(max(largest, abs(why.score), abs(why.base)))
    what = "value" if why.explained_class is None else f"probability of {escape(_to_text(why.explained_class))}"
    console.print(
        f"[bold]{what} {why.score:.{places}f}[/] = {why.base:.{places}f} (mean of "
        f"{why.method.background_rows} training rows) {why.score - why.base:+.{places}f} (sum of the contributions):",
        soft_wrap=True,
    )
    table = Table("column", "value", "contribution", "", "error", box=None, header_style="bold")
    table.columns[1].no_wrap, table.columns[1].max_width = True, SHOWN_CHARACTERS
    table.columns[2].justify = table.columns[4].justify = "right"
    for one in why.contributions[:MAX_COLUMNS]:
        bar = "█" * round(BAR * abs(one.contribution) / largest) if largest else ""
        table.add_row(
            escape(one.column),
            escape(" ".join(_to_text(one.value).split())),
            f"{one.contribution:+.{places}f}",
            f"[{'red' if one.contribution < 0 else 'green'}]{bar}[/]",
            f"{one.standard_error:.{places}f}" if one.standard_error else "none",
        )
    if others := why.contributions[MAX_COLUMNS:]:
        table.add_row(f"{len(others):,} more", "", f"{sum(one.contribution for one in others):+.{places}f}", "", "")
    console.print(table)


def show_proposal(found: "Examination") -> None:
    """Print the decisions of `adopt`, and the issues it found."""
    from flywheel_ml.data.adoption.columns import describe_entry

    profile, proposal = found.profile, found.proposal
    read = f" ({', '.join(profile.notes)})" if profile.notes else ""
    console.print(f"{profile.rows:,} rows × {len(profile.columns):,} columns{read}")
    of_all, by_column = proposal.decisions[:2], proposal.decisions[2:]
    for decision in of_all:
        console.print(f"[bold]{decision.what}[/]: {escape(decision.why)}", soft_wrap=True)
    table = Table("column", "role", "type", "values", "why", box=None, header_style="bold")
    for column, decision in list(zip(proposal.columns, by_column, strict=True))[:MAX_COLUMNS]:
        cells = (column["name"], decision.what, column["type"], "; ".join(describe_entry(column)), decision.why)
        table.add_row(*map(escape, cells), style="dim" if decision.what == "ignored" else None)
    console.print(table)
    if len(by_column) > MAX_COLUMNS:
        console.print(f"… and {len(by_column) - MAX_COLUMNS:,} more columns; contract.yaml lists them all")
    for issue in proposal.issues[:MAX_COLUMNS]:
        colour = {"refused": "red", "warned": "yellow", "handled": "dim"}[issue.severity]
        where = f"{escape(issue.column)}: " if issue.column else ""
        text = f"{issue.kind}: {escape(issue.evidence)}; {escape(issue.remedy)}"
        console.print(f"  [{colour}]{issue.severity:8}[/] {where}{text}", soft_wrap=True)
    if len(proposal.issues) > MAX_COLUMNS:
        console.print(f"… and {len(proposal.issues) - MAX_COLUMNS:,} more issues")


def show_window(found: "MonitoringRun") -> None:
    """Print the alerts and the verdict of a monitored window."""
    for alert in found.alerts:
        console.print(f"[bold]{alert.severity}[/]: {alert.what}: {escape(alert.evidence)}", soft_wrap=True)
    console.print(
        f"[bold]{found.result.verdict}[/]: {formatting.rows(found.result.volume.rows)}; report: {found.html}",
        soft_wrap=True,
    )


def show_open_alerts(alerts: "Sequence[OpenAlert]") -> None:
    """Print the conditions that last, and the sinks that have not been notified yet."""
    for alert, started_at, waiting in alerts:
        waits = f" [yellow](waits for {', '.join(waiting)})[/]" if waiting else ""
        facts = escape(f"{alert.what}: {alert.evidence}; {alert.source}, since {started_at:%F %T} UTC")
        console.print(f"[bold]{alert.severity}[/]: {facts}{waits}", soft_wrap=True)
    if not alerts:
        console.print("No alert is open.")


def show_deliveries(deliveries: "Sequence[Delivery]") -> None:
    """Print what each sink accepted, or why it failed."""
    for sink, accepted, fault in deliveries:
        outcome = f"[red]failed[/]: it {escape(fault)}" if fault else f"{accepted:,} sent"
        console.print(f"  {sink.name} [dim]({escape(sink.setting)})[/] {outcome}", soft_wrap=True)


def show_applied(found: "Applied") -> None:
    """Print what the policy decided about a window, and how each action ended."""
    for decision in found.record.decisions:
        console.print(f"[bold]{decision.action}[/]: {decision.finding}: {escape(decision.reason)}", soft_wrap=True)
    for outcome in found.outcomes:
        mark = "[green]done[/]" if outcome.succeeded else "[red]failed[/]"
        console.print(f"  {mark} {outcome.action}: {escape(outcome.text)}", soft_wrap=True)


def show_checks(checks: "list[GateResult]") -> None:
    """Print the result of each gate."""
    for check in checks:
        mark = "[green]passed [/]" if check.passed else "[red]REFUSED[/]"
        console.print(f"  {mark} {check.gate}: {escape(check.reason)}", soft_wrap=True)


def print_uncommitted() -> None:
    """Print the uncommitted files that are needed to reproduce the run, if any."""
    from flywheel_ml.flows.versioning import git

    if changed := git.list_uncommitted():
        paths = " ".join(f"'{name}'" if "*" in name else name for name in changed)
        console.print(
            f"Uncommitted files are needed to reproduce this version: git add {paths} && git commit", soft_wrap=True
        )


def print_next_step(role: str) -> None:
    """Print the next commands for a model with this role."""
    if role == "champion":
        console.print("Next: `make serve` starts the API, `make ui` shows the run.")
    elif role == "challenger":
        console.print("Next: `make promote` makes it champion, `make rollout` shows all versions.")
    elif role == "rolled back":
        console.print("It was rolled back; `make promote VERSION=` makes it champion again.")


def _count_decimals(size: float) -> int:
    """Count the decimals that show a number of this size with four significant digits."""
    return max(0, 3 - math.floor(math.log10(size))) if size else 4


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
