"""Commands of automatic operation: retrain, decisions."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli import terminal
from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import GateRefusal

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
    """List what the policy of params.yaml decided about monitored windows, and how each action ended."""
    from flywheel_ml.flows.retraining.policy import FILE
    from flywheel_ml.monitoring.policy.decisions import ACTING, read

    ctx.obj.load_params()  # Elsewhere than in a project, this is an error.
    found = read(FILE)
    records = [record for record in found.records if every or record.decisions][-last:]
    table = Table("time (UTC)", "model", "finding", "decision", "why", "outcome", box=None, header_style="bold")
    for record in records:
        for decision in record.decisions:
            outcome = found.find_outcome(record, decision.action) if decision.action in ACTING else None
            ended = "" if outcome is None else f"{'done' if outcome.succeeded else 'failed'}: {outcome.text}"
            waits = "not completed" if outcome is None and decision.action in ACTING else ended
            evidence = next(one.evidence for one in record.observations if one.finding == decision.finding)
            cells = (decision.finding, decision.action, f"{decision.reason}; {evidence}", waits)
            table.add_row(f"{record.at:%F %T}", *map(escape, (record.model, *cells)))
        if not record.decisions:
            table.add_row(f"{record.at:%F %T}", escape(record.model), "none", "", "", "")
    console.print(table if records else "No decision yet: `make monitor ACT=1`, or `make schedules`.")
