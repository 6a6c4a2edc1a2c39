"""The commands of automatic operation: `retrain`."""

from typing import Annotated

import typer

from flywheel_ml.cli import terminal
from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import GateRefusal


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("retrain")(retrain)


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
        raise GateRefusal(f"version {found.version} was refused and will not serve: {found.refusal}")
    terminal.print_next_step(found.role)
    console.print(f"Its code and data: `git merge {found.branch}` and `dvc checkout`.", soft_wrap=True)
