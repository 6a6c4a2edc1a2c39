"""Commands that make a model: run, adopt."""

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from flywheel_ml.cli import terminal
from flywheel_ml.cli.terminal import console
from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ConfigError, GateRefusal

SplitMode = Literal["time", "hash"]

app = typer.Typer()


@app.command()
def run(
    ctx: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Run every step even if nothing changed.")] = False,
) -> None:
    """Train a model: raw data, stages, gates, registry, rollout. Does nothing if nothing changed."""
    from flywheel_ml.data.adoption import applying
    from flywheel_ml.flows import run_state
    from flywheel_ml.flows.orchestration import engine
    from flywheel_ml.flows.progress import Progress
    from flywheel_ml.flows.versioning import dvc_stages

    if applying.FOLDER.is_dir():
        with engine.lock_project(run_state.FOLDER, "run"):
            applying.recover()
    settings, params, progress = Settings.read(), ctx.obj.load_params(), Progress(console)
    last = None if force else run_state.find_last_run(ctx.obj, settings, params)
    if last is not None:
        with progress.step("dvc", "has anything changed?") as step:
            current = not dvc_stages.is_outdated()
            step.note = "nothing changed since the last run" if current else "something changed"
            step.idle = current
        if current:
            other = "" if last["champion"] in (None, last["version"]) else f"; version {last['champion']} is champion"
            summary = f"Up to date: version {last['version']}, {last['role']}{other}."
            console.print(f"{summary} [dim]`run --force` runs all steps.[/]")
            terminal.print_uncommitted()
            _raise_if_refused(last["version"], last["role"])
            return
    from flywheel_ml.flows import training

    outcome = training.run(ctx.obj, settings, progress)
    terminal.show_checks(outcome.checks)
    if warning := training.describe_no_signal(outcome.checks, Contract.load(paths.CONTRACT)):
        console.print(warning, style="bold yellow", markup=False, soft_wrap=True)
    total = sum(progress.seconds.values())
    console.print(f"[bold]Version {outcome.version}: {outcome.role}[/], after {total:.0f} s.")
    terminal.print_uncommitted()
    terminal.print_next_step(outcome.role)
    _raise_if_refused(outcome.version, outcome.role)


def _raise_if_refused(version: str, role: str) -> None:
    if role == "refused":
        raise GateRefusal(f"version {version} was refused by its gates and will not serve")


@app.command()
def adopt(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder of Parquet files, or a database URL.")],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Column to predict.")],
    query: Annotated[str, typer.Option(metavar="SQL", help="Query that selects the rows of a database.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also replace files with uncommitted edits.")] = False,
    name: Annotated[str, typer.Option(help="Name of table and model; default: the name of the file.")] = "",
    id: Annotated[str, typer.Option("--id", metavar="COLUMN", help="Identifies each row.")] = "",  # noqa: A002
    time: Annotated[str, typer.Option(metavar="COLUMN", help="Time of each row, or `none`.")] = "",
    group: Annotated[
        str, typer.Option(metavar="COLUMN", help="Rows with the same value stay in the same part of the split.")
    ] = "",
    weight: Annotated[str, typer.Option(metavar="COLUMN", help="Weight of each row in training.")] = "",
    ignore: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Not an input; may be repeated.")] = None,
    feature: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="An input; may be repeated.")] = None,
    task: Annotated[Task | None, typer.Option(help="Task, if the target allows more than one.")] = None,
    split: Annotated[
        SplitMode | None, typer.Option(help="Split into train, validation and test by time or at random.")
    ] = None,
    positive: Annotated[str, typer.Option(metavar="LABEL", help="The positive one of two classes.")] = "",
    keep_na: Annotated[
        list[str] | None,
        typer.Option("--keep-na", metavar="COLUMN", help="NA is a value in this column; may be repeated."),
    ] = None,
) -> None:
    """Replace the table of this project with your own: contract, parameters and rows, atomically."""
    from flywheel_ml.data.adoption import adopt as adoption
    from flywheel_ml.data.adoption.overrides import Overrides
    from flywheel_ml.flows import run_state
    from flywheel_ml.flows.orchestration import engine
    from flywheel_ml.flows.versioning import git

    overrides = Overrides(
        name=name,
        id=id,
        time=time,
        group=group,
        weight=weight,
        ignore=tuple(ignore or ()),
        feature=tuple(feature or ()),
        task=task,
        split=split,
        positive=positive,
        keep_na=tuple(keep_na or ()),
    )
    with engine.lock_project(run_state.FOLDER, "run", doing="adopt"):
        if not force and (edited := git.list_edited(adoption.list_overwritten_files(ctx.obj.folder))):
            raise ConfigError(f"uncommitted edits would be lost: {', '.join(edited)}; commit them, or pass --force")
        now = datetime.now(UTC).replace(tzinfo=None)
        with ExitStack() as stack:
            with console.status("reading the table"):
                found = stack.enter_context(adoption.examine(data, query, target, overrides, now))
            terminal.show_proposal(found)
            if not yes and not any(issue.severity == "refused" for issue in found.proposal.issues):
                if not sys.stdin.isatty():
                    raise ConfigError(
                        "nothing was changed: confirmation needs a terminal; pass --yes (make: ARGS=--yes)"
                    )
                typer.confirm("Replace the table of this project?", abort=True)
            with console.status("writing the project's copy"):
                before = adoption.adopt_table(found, Settings.read(), ctx.obj)
    console.print(f"Adopted. A backup is in {before}; `git diff` shows the changes.", soft_wrap=True)
    console.print("Next: check contract.yaml, then run `make run` to train and `make serve` to start the API.")
