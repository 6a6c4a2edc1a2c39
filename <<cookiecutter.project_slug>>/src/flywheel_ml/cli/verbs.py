"""The command line of the project. Each command is also a target of the Makefile."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli import (
    canary_verbs,
    quality_verbs,
    replay_verbs,
    retraining_verbs,
    score_verb,
    stack_verbs,
    terminal,
)
from flywheel_ml.cli.command import run_command
from flywheel_ml.cli.experiment_verbs import experiment_app
from flywheel_ml.cli.log import log_app
from flywheel_ml.cli.terminal import console
from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import QUIET, Settings
from flywheel_ml.utils.errors import ConfigError, GateRefusal
from flywheel_ml.utils.units import parse_duration

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry
    from flywheel_ml.monitoring.run import MonitoringRun

R = TypeVar("R")
SplitMode = Literal["time", "hash"]
INTERRUPTED = 130
DEFAULT_SHARE = 0.1

# Each command imports its heavy libraries itself: `--help` and `serve` must not wait for MLflow.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help=__doc__,
    pretty_exceptions_enable=False,
)
rollout_app = typer.Typer(
    no_args_is_help=True,
    help="Choose which version serves which share of the traffic: start, status, promote, abort, rollback, sync.",
)
app.add_typer(rollout_app, name="rollout")
app.add_typer(canary_verbs.app, name="canary")
app.add_typer(quality_verbs.app)
app.add_typer(log_app, name="log")
app.add_typer(retraining_verbs.app)
app.add_typer(replay_verbs.app)
app.add_typer(score_verb.app)
app.add_typer(experiment_app, name="experiment")
app.add_typer(stack_verbs.app)

ENVIRONMENT = {**QUIET, "OMP_WAIT_POLICY": "PASSIVE"}
"""Quiet tools; OpenMP threads that busy-wait would make a shared machine many times slower."""


def main(project: Project) -> NoReturn:
    """Run a command; an error becomes one line and a non-zero exit status."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    run_command(lambda: _invoke(project))


def _invoke(project: Project) -> None:
    try:
        status = app(standalone_mode=False, obj=project)
    except typer.TyperException as error:
        if not error.format_message():  # No command was given: the help has been printed.
            sys.exit(2)
        context = getattr(error, "ctx", None)
        path = context.command_path if context else Path(sys.argv[0]).name
        raise ConfigError(f"{' '.join(error.format_message().split()).rstrip('.')}; see `{path} --help`") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status == INTERRUPTED:  # Typer reports an interrupt silently by this status.
        raise KeyboardInterrupt
    sys.exit(status)


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
def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 selects a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 1,
) -> None:
    """Serve predictions over HTTP from the serving folder."""
    from flywheel_ml.serving.process.server import run as serve_forever

    serve_forever(ctx.obj, Settings.read, host=host, port=port, workers=workers)


@app.command()
def score(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Table in any format that `adopt` reads.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Parquet file to write.")],
    prefect: Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow.")] = False,
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
        console.print("[yellow]![/] Rows that break the contract were scored too; their predictions are less reliable.")
    console.print(
        f"{done.rows:,} rows in {done.seconds:.1f} s ({speed:,.0f} per second) "
        f"by version {done.model_version} → {output}",
        soft_wrap=True,
    )


@app.command()
def window(
    ctx: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Parquet file to write.")],
    since: Annotated[datetime | None, typer.Option(help="Start of the span, inclusive; default: `data.until`.")] = None,
    until: Annotated[
        datetime | None, typer.Option(help="End of the span, exclusive; default: one month after the start.")
    ] = None,
) -> None:
    """Export a span of the raw table to a file, for example the month after `data.until`."""
    from flywheel_ml.data.window import export_span

    rows = export_span(output, Contract.load(paths.CONTRACT), ctx.obj.load_params(), since, until)
    console.print(f"{rows:,} rows → {output}")


@rollout_app.command("start")
def rollout_start(
    ctx: typer.Context,
    versions: Annotated[
        list[str] | None, typer.Argument(metavar="[VERSION]...", help="Version numbers; default: the challenger.")
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the traffic, above 0 and at most 1; once for each version. Default: 0.1."),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Only score and log; the champion answers all requests.")
    ] = False,
    why: Annotated[str, typer.Option(metavar="REASON", help="Reason for the audit log.")] = "started",
) -> None:
    """Start an experiment with one version or several: shares of the traffic, or one shadow. Repeat to change them."""
    from flywheel_ml.flows import rollout

    if shadow and share:
        raise ConfigError("a shadow answers no requests and has no share; give either --share or --shadow")
    numbers: list[str | None] = [*versions] if versions else [None]
    shares: list[float | None] = [*share] if share else [None if shadow else DEFAULT_SHARE] * len(numbers)
    if len(shares) != len(numbers):
        raise ConfigError(
            f"{len(numbers)} versions and {len(shares)} share{'s' * (len(shares) != 1)}; give one --share for each "
            f"version, or none for {DEFAULT_SHARE:g} each"
        )
    for one in shares:
        if one is not None and not 0 < one <= 1:
            raise ConfigError(f"--share is {one:g}; give a number above 0 and at most 1")
    now = rollout.start_arms(_open_registry(ctx), Settings.read(), list(zip(numbers, shares, strict=True)), why)
    console.print(f"Serving: {rollout.describe_routing(now)}; servers follow within a second.")


@rollout_app.command("status")
def rollout_status(
    ctx: typer.Context,
    server: Annotated[
        str, typer.Option(metavar="URL", help="Server to ask for the state of its circuit breaker.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Show versions, the share and statistics of each variant, and the last changes."""
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
    version: Annotated[
        str | None, typer.Argument(help="Version number; default: the version in the experiment, else the challenger.")
    ] = None,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Promote a version that a gate refused; the reason is recorded.")
    ] = "",
    why: Annotated[str, typer.Option(metavar="REASON", help="Reason for the audit log.")] = "promoted",
) -> None:
    """Make a version champion and serve it; a running experiment ends."""
    from flywheel_ml.flows import rollout

    promoted = rollout.promote(_open_registry(ctx), Settings.read(), version, override, why)
    console.print(f"Version {promoted.number} is champion; servers follow within a second.")


@rollout_app.command("abort")
def rollout_abort(
    ctx: typer.Context,
    why: Annotated[str, typer.Option(metavar="REASON", help="Reason for the audit log.")] = "aborted",
) -> None:
    """End the experiment; the champion answers all requests."""
    from flywheel_ml.flows import rollout

    now = rollout.abort(_open_registry(ctx), Settings.read(), why)
    console.print(f"Serving: {rollout.describe_routing(now)} alone; servers follow within a second.")


@rollout_app.command("rollback")
def rollout_rollback(
    ctx: typer.Context,
    why: Annotated[str, typer.Option(metavar="REASON", help="Reason for the audit log.")] = "rolled back",
) -> None:
    """Make the previous champion champion again; a running experiment ends."""
    from flywheel_ml.flows import rollout

    promoted = rollout.rollback(_open_registry(ctx), Settings.read(), why)
    console.print(f"Version {promoted.number} is champion again; servers follow within a second.")


@rollout_app.command("sync")
def rollout_sync(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep syncing until stopped, for example as a sidecar of servers.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two syncs.")] = 5.0,
) -> None:
    """Bring the serving folder in line with the registry, for example after the folder was lost."""
    from flywheel_ml.flows import rollout

    if watch:
        # An interruption after any step is safe, so there is nothing to finish.
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
        Path | None, typer.Argument(metavar="[SCORED]", help="Scored file; default: the prediction log.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Start of the span in the log, inclusive (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option(help="End of the span in the log, exclusive (UTC).")] = None,
    last: Annotated[str, typer.Option(metavar="SPAN", help="The latest part of the log, such as 24h, 7d or 4w.")] = "",
    version: Annotated[str | None, typer.Option(help="Version of the model; default: the champion.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="What to compare with: test, same-season, or a span named in params.yaml.")
    ] = None,
    act: Annotated[bool, typer.Option("--act", help="Then carry out the policy of params.yaml.")] = False,
    prefect: Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow.")] = False,
) -> None:
    """Compare predictions with the reference. Exit status: 0 ok, 3 insufficient data, 4 drift, 5 degraded."""
    from flywheel_ml.flows.monitoring import monitor_window
    from flywheel_ml.monitoring.result import EXIT_STATUS

    if last and (since or until):
        raise ConfigError("--last goes with neither --since nor --until; give one or the other")
    if act and (source or until or version):
        raise ConfigError("--act needs the champion's current window of the log; drop SCORED, --until and --version")
    start = datetime.now(UTC) - parse_duration(last, "--last") if last else since
    settings, params = Settings.read(), ctx.obj.load_params()

    def watch(report: "Callable[[MonitoringRun], object]" = id) -> "MonitoringRun":
        def show(run: "MonitoringRun") -> None:
            terminal.show_window(run)
            report(run)

        window = partial(monitor_window, ctx.obj, settings, params, source, start, until, show, version, reference)
        return _run_flow("monitoring", window, prefect)

    if act:
        from flywheel_ml.flows.retraining.policy import act_on

        found = act_on(ctx.obj, settings, params, watch, terminal.show_applied)
    else:
        found = watch()
    raise typer.Exit(EXIT_STATUS[found.result.verdict])


@app.command()
def alerts(
    ctx: typer.Context,
    test: Annotated[bool, typer.Option("--test", help="Only send one test alert to each configured sink.")] = False,
) -> None:
    """List the open alerts, and deliver those that a sink has not accepted yet."""
    from flywheel_ml.flows import alerting

    ctx.obj.load_params()  # Elsewhere than in a project, nothing is created.
    if test:
        alerting.send_test_alert(ctx.obj, Settings.read(), terminal.show_deliveries)
    else:
        alerting.deliver_queued(ctx.obj, Settings.read(), terminal.show_open_alerts, terminal.show_deliveries)


@app.command()
def explain(
    ctx: typer.Context,
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Id of the prediction, from its response.")],  # noqa: A002
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Explain a logged prediction: what each column contributed to its score."""
    from flywheel_ml.flows.explaining import explain_logged

    found = explain_logged(ctx.obj, id, Settings.read(), lambda: _open_registry(ctx))
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        terminal.show_explanation(found)


@app.command()
def ui() -> None:
    """Start the web UIs of MLflow and Prefect, and print their addresses."""
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
    """Run `body`, under Prefect if requested or if an API is configured."""
    from flywheel_ml.flows import run_state
    from flywheel_ml.flows.orchestration import engine

    if not prefect and not engine.has_api():
        return body()
    with engine.connect_api(run_state.FOLDER / "prefect"):
        return engine.run_flow(name, body)


def _open_registry(ctx: typer.Context) -> "Registry":
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(Settings.read(), Contract.load(paths.CONTRACT).name, ctx.obj)
