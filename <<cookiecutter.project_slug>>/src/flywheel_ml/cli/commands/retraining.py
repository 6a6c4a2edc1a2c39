"""Commands of automatic operation: retrain, decisions."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli import terminal
from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import GateRefusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flywheel_ml.monitoring.policy.deciding import Record
    from flywheel_ml.monitoring.policy.decisions import CanaryRecord, Decisions, Outcome

app = typer.Typer()


@app.command()
def retrain(
    ctx: typer.Context,
    as_of: Annotated[
        str, typer.Option("--as-of", metavar="DATE", help="Train on rows before this date; default: now.")
    ] = "",
    with_log: Annotated[
        bool, typer.Option("--with-log", help="Also learn from labelled rows of the prediction log.")
    ] = False,
) -> None:
    """Train the last commit on newer rows, in a copy of the project; the result is a branch and a version."""
    from flywheel_ml.flows.progress import Progress
    from flywheel_ml.flows.retraining.launch import retrain as launch

    found = launch(ctx.obj, Settings.read(), Progress(console), as_of, with_log)
    terminal.show_checks(list(found.checks))
    console.print(f"[bold]Version {found.version}: {found.role}[/], on branch {found.branch}.", soft_wrap=True)
    if found.role == "refused":
        raise GateRefusal(f"version {found.version} was refused: {found.refusal}; see docs/runbook-training.md")
    terminal.print_next_step(found.role)
    console.print(f"Its code and data: `git merge {found.branch}` and `dvc checkout`.", soft_wrap=True)


@app.command()
def decisions(
    ctx: typer.Context,
    last: Annotated[int, typer.Option(min=1, help="How many windows.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="Also windows in which nothing was found.")] = False,
) -> None:
    """List what was decided about monitored windows and canaries, and how each action ended."""
    from flywheel_ml.flows.retraining.policy import FILE
    from flywheel_ml.monitoring.policy.decisions import CanaryRecord, read

    ctx.obj.load_params()  # Elsewhere than in a project, this is an error.
    found = read(FILE)
    entries: list[Record | CanaryRecord] = [record for record in found.records if every or record.decisions]
    entries = sorted([*entries, *found.canaries], key=lambda one: one.at)[-last:]
    table = Table("time (UTC)", "model", "finding", "decision", "why", "outcome", box=None, header_style="bold")
    for entry in entries:
        for cells in _describe_canary(entry, found) if isinstance(entry, CanaryRecord) else _describe(entry, found):
            table.add_row(f"{entry.at:%F %T}", *map(escape, cells))
    console.print(table if entries else "No decision yet: `make monitor ACT=1`, `make canary`, or `make schedules`.")


def _describe(record: "Record", found: "Decisions") -> "Iterator[tuple[str, ...]]":
    """Yield a line for each decision about a window."""
    from flywheel_ml.monitoring.policy.decisions import ACTING

    for decision in record.decisions:
        outcome = found.find_outcome(record, decision.action) if decision.action in ACTING else None
        ended = _describe_outcome(outcome) if outcome or decision.action in ACTING else ""
        evidence = next(one.evidence for one in record.observations if one.finding == decision.finding)
        yield record.model, decision.finding, decision.action, f"{decision.reason}; {evidence}", ended
    if not record.decisions:
        yield record.model, "none", "", "", ""


def _describe_canary(record: "CanaryRecord", found: "Decisions") -> "Iterator[tuple[str, ...]]":
    """Yield the line of a look at a canary."""
    ended = _describe_outcome(found.find_outcome(record, record.action)) if record.is_due else ""
    waits = "waits for `make canary-approve`" if record.waits else ended
    yield f"version {record.version}", f"canary, step {record.step}", record.action, record.reason, waits


def _describe_outcome(outcome: "Outcome | None") -> str:
    return "not completed" if outcome is None else f"{'done' if outcome.succeeded else 'failed'}: {outcome.text}"
