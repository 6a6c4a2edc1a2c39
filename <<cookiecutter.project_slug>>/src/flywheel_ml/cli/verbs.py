"""The command line: one verb each; every verb stands in the Makefile too."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli import terminal
from flywheel_ml.cli.terminal import console
from flywheel_ml.core import paths
from flywheel_ml.core.command import run_command
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import QUIET, Settings
from flywheel_ml.utils.errors import ConfigError, GateRefusal

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

R = TypeVar("R")
SplitMode = Literal["time", "hash"]
INTERRUPTED = 130
DEFAULT_SHARE = 0.1

# Heavy libraries are imported in the verb that needs them: `--help` and `serve` must not wait for MLflow.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help=__doc__,
    pretty_exceptions_enable=False,
)
rollout_app = typer.Typer(
    no_args_is_help=True, help="Which version answers what share: start, status, promote, abort, rollback, sync."
)
app.add_typer(rollout_app, name="rollout")

ENVIRONMENT = {**QUIET, "OMP_WAIT_POLICY": "PASSIVE"}
"""Tools are quiet; OpenMP threads that spin while they wait would make a shared machine many times slower."""


def main(project: Project) -> NoReturn:
    """Entry point: an error becomes one line and an exit status other than 0."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    run_command(lambda: _invoke(project))


def _invoke(project: Project) -> None:
    try:
        status = app(standalone_mode=False, obj=project)
    except typer.TyperException as error:
        if not error.format_message():  # No verb was given: the help stands above.
            sys.exit(2)
        context = getattr(error, "ctx", None)
        path = context.command_path if context else Path(sys.argv[0]).name
        raise ConfigError(f"{' '.join(error.format_message().split()).rstrip('.')}; see `{path} --help`") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status == INTERRUPTED:  # Typer's own way of an interrupt, which says nothing.
        raise KeyboardInterrupt
    sys.exit(status)


@app.command()
def run(
    ctx: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Go through every step even if nothing changed.")] = False,
) -> None:
    """Train: raw data, stages, gates, registry, rollout. Does nothing when nothing changed."""
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
            console.print(f"{summary} [dim]`run --force` goes through all steps.[/]")
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
def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Answer predictions over HTTP from the serving folder."""
    from flywheel_ml.serving.process.server import run as serve_forever

    serve_forever(ctx.obj, Settings.read, host=host, port=port, workers=workers)


@app.command()
def score(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A file that adopt would read.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Parquet.")],
    prefect: Annotated[bool, typer.Option("--prefect", help="As a Prefect flow run.")] = False,
) -> None:
    """Score a table with the champion."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from flywheel_ml.data.tables import count_rows
    from flywheel_ml.flows import scoring

    settings, params = Settings.read(), ctx.obj.load_params()
    columns = (SpinnerColumn(), TextColumn("scoring"), MofNCompleteColumn(), TextColumn("rows"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("score", total=count_rows(source))
        done = _run_flow(
            "scoring",
            lambda: scoring.score(
                ctx.obj, source, output, settings, params.score, lambda rows: bar.advance(shown, rows)
            ),
            prefect,
        )
    speed = done.rows / done.seconds
    for rule, count in list(done.violations.items())[:5]:
        console.print(f"[yellow]![/] {count:,} rows: {escape(rule)}", soft_wrap=True)
    if done.violations:
        console.print("[yellow]![/] Rows that break the contract are scored all the same; trust them less.")
    console.print(
        f"{done.rows:,} rows in {done.seconds:.1f} s ({speed:,.0f} a second) "
        f"by version {done.model_version} → {output}",
        soft_wrap=True,
    )


@app.command()
def window(
    ctx: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Parquet.")],
    since: Annotated[datetime | None, typer.Option(help="First moment; `data.until` if not given.")] = None,
    until: Annotated[datetime | None, typer.Option(help="First moment after; a month on if not given.")] = None,
) -> None:
    """Cut a span of the raw table into a file, for example the month after `data.until`."""
    from flywheel_ml.data.window import export_span

    rows = export_span(output, Contract.load(paths.CONTRACT), ctx.obj.load_params(), since, until)
    console.print(f"{rows:,} rows → {output}")


@rollout_app.command("start")
def rollout_start(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(help="The challenger if not given.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Part of the traffic that it answers, above 0 and at most 1; 0.1 if not given.")
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Ask and log it; the champion answers all.")] = False,
    why: Annotated[str, typer.Option(metavar="REASON", help="Kept on record.")] = "started",
) -> None:
    """Try a version out beside the champion, on a share of the traffic or as its shadow; again: change the share."""
    from flywheel_ml.flows import rollout

    if shadow and share is not None:
        raise ConfigError("a shadow answers nobody and has no share; give --share or --shadow")
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"--share is {share:g}; give a number above 0 and at most 1")
    now = rollout.start(_open_registry(ctx), Settings.read(), version, None if shadow else share or DEFAULT_SHARE, why)
    console.print(f"Serving: {rollout.describe_routing(now)}; servers take it up within a second.")


@rollout_app.command("status")
def rollout_status(
    ctx: typer.Context,
    server: Annotated[
        str, typer.Option(metavar="URL", help="Asked for the state of its breaker.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Who answers what share since when, how often, and the last changes."""
    from flywheel_ml.core import serving_folder
    from flywheel_ml.core.metrics import HEADLINE
    from flywheel_ml.flows import rollout
    from flywheel_ml.utils.formatting import METRIC_NAMES, short_digest

    settings, registry = Settings.read(), _open_registry(ctx)
    holders = {role: found.number for role in ("champion", "challenger") if (found := registry.find_alias(role))}
    headline = HEADLINE[Contract.load(paths.CONTRACT).task]
    table = Table("version", "digest", "role", METRIC_NAMES[headline], "gates", box=None, header_style="bold")
    for version in registry.list_versions()[:10]:
        role = ", ".join(role for role, number in holders.items() if number == version.number)
        role = role or ("rolled back" if version.rolled_back else "")
        measure = f"{version.metrics[headline]:.4f}" if headline in version.metrics else "–"
        table.add_row(
            version.number,
            short_digest(version.digest),
            role,
            measure,
            "passed" if version.passed else f"refused: {escape(version.refusal)}",
        )
    console.print(table)
    if (settings.serving_folder / serving_folder.ROUTING).is_file():
        now = serving_folder.read_routing(settings.serving_folder)
        summary = f"serving: {rollout.describe_routing(now)} since {now.updated_at} ({escape(now.reason)})"
        console.print(summary, soft_wrap=True)
        terminal.show_rollout_status(now, server, settings)
    for entry in rollout.read_audit(settings.serving_folder)[-5:]:
        console.print(
            f"[dim]{entry['at']}  {escape(entry['who'])}: {entry.get('what', 'champion')} "
            f"{entry['from'] or 'nothing'} → {entry['to'] or 'nothing'} ({escape(entry['why'])})[/]"
        )


@rollout_app.command("promote")
def rollout_promote(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(help="What is tried out, or the challenger, if not given.")] = None,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Promote a refused version all the same; the reason is kept.")
    ] = "",
    why: Annotated[str, typer.Option(metavar="REASON", help="Kept on record.")] = "promoted",
) -> None:
    """Make a version champion and serve it; what is tried out ends."""
    from flywheel_ml.flows import rollout

    promoted = rollout.promote(_open_registry(ctx), Settings.read(), version, override, why)
    console.print(f"Version {promoted.number} is champion; servers take it up within a second.")


@rollout_app.command("abort")
def rollout_abort(
    ctx: typer.Context,
    why: Annotated[str, typer.Option(metavar="REASON", help="Kept on record.")] = "aborted",
) -> None:
    """End what is tried out: the champion answers everything."""
    from flywheel_ml.flows import rollout

    now = rollout.abort(_open_registry(ctx), Settings.read(), why)
    console.print(f"Serving: {rollout.describe_routing(now)} alone; servers take it up within a second.")


@rollout_app.command("rollback")
def rollout_rollback(
    ctx: typer.Context,
    why: Annotated[str, typer.Option(metavar="REASON", help="Kept on record.")] = "rolled back",
) -> None:
    """Go back to the version that was champion before; what is tried out ends."""
    from flywheel_ml.flows import rollout

    promoted = rollout.rollback(_open_registry(ctx), Settings.read(), why)
    console.print(f"Version {promoted.number} is champion again; servers take it up within a second.")


@rollout_app.command("sync")
def rollout_sync(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until stopped, as a sidecar of servers does.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 5.0,
) -> None:
    """Make the serving folder equal to the registry, for example after it was lost."""
    from flywheel_ml.flows import rollout

    if watch:
        # Every step is safe to be cut off after, so there is nothing to finish.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        rollout.sync_forever(
            lambda: _open_registry(ctx),
            Settings.read(),
            every,
            lambda line: print(f"{datetime.now(UTC):%FT%TZ} {line}", flush=True),
        )
    now = rollout.sync(_open_registry(ctx), Settings.read(), why="synced")
    console.print(f"The serving folder holds {rollout.describe_routing(now)}.")


@app.command()
def monitor(
    ctx: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(metavar="[SCORED]", help="A scored file; the prediction log if not given.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Of the log: first moment (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option(help="Of the log: first moment after (UTC).")] = None,
    prefect: Annotated[bool, typer.Option("--prefect", help="As a Prefect flow run.")] = False,
) -> None:
    """Judge predictions against the reference. Exit status: 0 ok, 3 insufficient data, 4 drift, 5 degraded."""
    from flywheel_ml.flows.monitoring import monitor_window
    from flywheel_ml.monitoring.result import EXIT_STATUS

    settings, params = Settings.read(), ctx.obj.load_params()
    found = _run_flow(
        "monitoring",
        lambda: monitor_window(ctx.obj, settings, params, source, since, until, terminal.show_window),
        prefect,
    )
    raise typer.Exit(EXIT_STATUS[found.result.verdict])


@app.command()
def explain(
    ctx: typer.Context,
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Of the prediction, as its answer told it.")],  # noqa: A002
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Say what each column contributed to a logged prediction, by the version that made it."""
    from flywheel_ml.flows.explaining import explain_logged

    found = explain_logged(ctx.obj, id, Settings.read(), lambda: _open_registry(ctx))
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        terminal.show_explanation(found)


@app.command()
def ui() -> None:
    """Open MLflow's and Prefect's pages: starts both servers and prints their addresses."""
    from flywheel_ml.flows.orchestration import web_ui
    from flywheel_ml.flows.progress import Progress
    from flywheel_ml.model.registration.registry import Registry

    settings = Settings.read()
    Registry.open(settings, Contract.load(paths.CONTRACT).name)
    web_ui.serve_pages(settings, Progress(console))


@app.command()
def adopt(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder of Parquet files, or a database URL.")],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="What to predict.")],
    query: Annotated[str, typer.Option(metavar="SQL", help="With a database URL: which rows.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that have uncommitted edits, too.")] = False,
    name: Annotated[str, typer.Option(help="Of table and model; the file's name if not given.")] = "",
    id: Annotated[str, typer.Option("--id", metavar="COLUMN", help="Names each row.")] = "",  # noqa: A002
    time: Annotated[str, typer.Option(metavar="COLUMN", help="When each row happened, or `none`.")] = "",
    group: Annotated[str, typer.Option(metavar="COLUMN", help="Whose rows stay on one side of the split.")] = "",
    weight: Annotated[str, typer.Option(metavar="COLUMN", help="How much each row counts in fitting.")] = "",
    ignore: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="No input; may be repeated.")] = None,
    feature: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="An input; may be repeated.")] = None,
    task: Annotated[Task | None, typer.Option(help="If the target could be read in two ways.")] = None,
    split: Annotated[
        SplitMode | None, typer.Option(help="Into train, validation and test by time, or by chance.")
    ] = None,
    positive: Annotated[str, typer.Option(metavar="LABEL", help="Of two classes, the one to look for.")] = "",
    keep_na: Annotated[
        list[str] | None, typer.Option("--keep-na", metavar="COLUMN", help="NA is a value in it; may be repeated.")
    ] = None,
) -> None:
    """Put your own table in the place of this one: contract, parameters and rows; nothing is left half-done."""
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
            raise ConfigError(
                f"edits that are not in git would be lost: {', '.join(edited)}; commit them, or pass --force"
            )
        now = datetime.now(UTC).replace(tzinfo=None)
        with ExitStack() as stack:
            with console.status("reading the table"):
                found = stack.enter_context(adoption.examine(data, query, target, overrides, now))
            terminal.show_proposal(found)
            if not yes and not any(issue.severity == "refused" for issue in found.proposal.issues):
                if not sys.stdin.isatty():
                    raise ConfigError(
                        "nothing was changed: there is no terminal to ask at; pass --yes (make: ARGS=--yes)"
                    )
                typer.confirm("Make this project about it?", abort=True)
            with console.status("writing the project's own copy"):
                before = adoption.adopt_table(found, Settings.read(), ctx.obj)
    console.print(f"Adopted. What was here is in {before}; `git diff` shows what changed.", soft_wrap=True)
    console.print("Next: read contract.yaml, then `make run` trains, `make serve` answers.")


@app.command()
def schedules(ctx: typer.Context) -> None:
    """Serve the schedules of prefect.yaml until stopped."""
    from flywheel_ml.flows import run_state
    from flywheel_ml.flows.orchestration import engine

    with (
        engine.lock_project(run_state.FOLDER, "schedules"),
        engine.connect_api(run_state.FOLDER / "prefect", scheduling=True),
    ):
        from flywheel_ml.flows.orchestration.schedules import serve_deployments

        console.print(f"Prefect {os.environ['PREFECT_API_URL'].removesuffix('/api')}", soft_wrap=True)
        serve_deployments(ctx.obj, Path("prefect.yaml"))


def _run_flow(name: str, body: Callable[[], R], prefect: bool) -> R:
    """Run plainly, or under Prefect where that is asked for or an API is configured."""
    from flywheel_ml.flows import run_state
    from flywheel_ml.flows.orchestration import engine

    if not prefect and not engine.has_api():
        return body()
    with engine.connect_api(run_state.FOLDER / "prefect"):
        return engine.run_flow(name, body)


def _open_registry(ctx: typer.Context) -> "Registry":
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(Settings.read(), Contract.load(paths.CONTRACT).name, ctx.obj)
