"""The commands of the group `log`: statistics, pruning, exports and erasures of the prediction log."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flywheel_ml.cli.context import open_registry
from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.units import format_bytes

if TYPE_CHECKING:
    from flywheel_ml.prediction_log.retention.erase import EraseResult

app = typer.Typer(no_args_is_help=True, help="Keep the prediction log in bounds: stats, prune, export, erase.")

ServerOption = Annotated[
    str, typer.Option(metavar="URL", help="Server that does the job; needs ML_LOG_KEY. Default: this machine's log.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("stats")
def log_stats(as_json: JsonOption = False) -> None:
    """Show files, rows, span, bytes, growth per day, and the days until the disk or the limit is full."""
    from flywheel_ml.flows import retention

    found = retention.measure(Settings.read())
    if as_json:
        print(json.dumps(found._asdict()))
        return
    rows = ", ".join(f"{count:,} {name}" for name, count in found.rows.items() if count) or "none"
    limit = "" if found.limit is None else f" of {format_bytes(found.limit)} ({found.limited_by})"
    growth = "unknown, less than an hour of rows" if found.growth is None else f"{format_bytes(found.growth)} a day"
    left = "" if found.days_left is None else f"; full in {found.days_left:,.0f} days"
    for name, text in {
        "files": f"{found.files}" if found.files else "a database",
        "rows": rows,
        "span": f"{_format_time(found.first_us)} to {_format_time(found.last_us)}",
        "bytes": f"{format_bytes(found.used)} in rows, {format_bytes(found.size)} on disk{limit}",
        "growth": f"{growth}{left}",
    }.items():
        console.print(f"[bold]{name:7}[/] {escape(text)}", soft_wrap=True)


@app.command("prune")
def log_prune(
    ctx: typer.Context,
    age: Annotated[str, typer.Option(help="Delete rows older than this, such as 90d. Default: ML_LOG_MAX_AGE.")] = "",
    size: Annotated[
        str, typer.Option(help="Delete the oldest rows down to this size, such as 10GB. Default: ML_LOG_MAX_SIZE.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the rows.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also delete rows of hours without a profile.")] = False,
    server: ServerOption = "",
) -> None:
    """Delete the oldest predictions and their labels. A rerun completes an interrupted one."""
    from flywheel_ml.flows import retention
    from flywheel_ml.prediction_log.retention.prune import PruneResult, read_limits

    settings = Settings.read()
    if server:
        asked = {"age": age, "size": size, "force": force, "dry_run": dry_run}
        done = PruneResult(**_call(settings, server, "prune", asked))
    else:
        limits = read_limits(settings, age, size)
        retention.lower_priority()
        done = retention.prune(ctx.obj, settings, limits, force, dry_run)
    first = "the log is empty" if done.first_us is None else f"the first row is of {_format_time(done.first_us)}"
    if not done.until_us:
        console.print(f"Nothing to prune: {first}.", soft_wrap=True)
    else:
        verb = "Would delete" if dry_run else "Deleted"
        console.print(
            f"{verb} rows before {_format_time(done.until_us)}: {_format_counts(done.counts)}.", soft_wrap=True
        )
        if not dry_run:
            freed = max(done.bytes_before - done.bytes_after, 0)
            console.print(f"Freed {format_bytes(freed)}; {format_bytes(done.bytes_after)} remain.", soft_wrap=True)
    if done.unprofiled:
        console.print(f"{formatting.rows(done.unprofiled)} belonged to hours without a profile.", soft_wrap=True)
    _raise_for([f"{name}: {reason}" for name, reason in done.failures.items()], "pruned")


@app.command("export")
def log_export(
    ctx: typer.Context,
    since: Annotated[datetime | None, typer.Option("--from", help="Start of the span, inclusive (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="End of the span, exclusive (UTC).")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to create. Default: one in ML_EXPORT_FOLDER.")] = None,
    server: ServerOption = "",
) -> None:
    """Export predictions and labels to Parquet, one file per model contract."""
    from flywheel_ml.flows import retention
    from flywheel_ml.prediction_log.retention.export import ExportResult

    settings = Settings.read()
    if server:
        if output is not None:
            raise ConfigError("--output names a folder on this machine; a server exports to its ML_EXPORT_FOLDER")
        span = {name: f"{time:%FT%T}Z" for name, time in (("since", since), ("until", until)) if time}
        done = ExportResult(**_call(settings, server, "export", span))
    else:
        retention.lower_priority()
        done = retention.export(settings, lambda: open_registry(ctx), since, until, output)
    for name, rows in done.rows.items():
        console.print(f"{formatting.rows(rows)} → {escape(done.folder)}/{escape(name)}", soft_wrap=True)
    if done.untyped:
        console.print(
            f"[yellow]![/] {formatting.rows(done.untyped)} of models whose bundle is gone; inputs are JSON texts.",
            soft_wrap=True,
        )


@app.command("erase")
def log_erase(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Value of the contract's id column.")],
    server: ServerOption = "",
) -> None:
    """Erase an entity: predictions, labels, exports, scored files and tables; report what was not reached."""
    from flywheel_ml.flows import retention
    from flywheel_ml.prediction_log.retention.erase import EraseResult

    settings = Settings.read()
    if server:
        done = EraseResult(**_call(settings, server, "erase", {"key": key}))
        note = "tables and scored files of the project: run `make log-erase` without SERVER in its folder"
        done = done._replace(outside=[note, *done.outside])
        if not done.found and not done.failures and not done.resumed:
            raise ProjectError(f"nothing was found for the key '{key}' on {server}")
    else:
        retention.lower_priority()
        done = retention.erase(settings, key)
    _show_erasure(done)
    _raise_for(done.failures, "erased")


def _show_erasure(done: "EraseResult") -> None:
    if done.resumed:
        console.print(f"Completed {done.resumed} interrupted erasure(s) first.")
    console.print(f"Erased from the log: {_format_counts(done.counts)}.", soft_wrap=True)
    for name, count in done.files.items():
        console.print(f"Erased from {escape(name)}: {formatting.rows(count)}.", soft_wrap=True)
    console.print("Not reached:")
    for line in [*done.failures, *done.outside]:
        mark = "[red]✗[/]" if line in done.failures else "[yellow]![/]"
        console.print(f"  {mark} {escape(line)}", soft_wrap=True)


def _raise_for(failures: list[str], what: str) -> None:
    if failures:
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise ProjectError(f"not everything was {what}: {failures[0]}{more}")


def _call(settings: Settings, server: str, kind: str, body: dict[str, Any]) -> Any:
    from flywheel_ml.flows.retention import call_server

    with console.status(f"{kind} on {server}") as status:
        return call_server(server, settings.log_key.get_secret_value(), kind, body, status.update)


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "no rows"


def _format_time(timestamp_us: int | None) -> str:
    from flywheel_ml.prediction_log import to_datetime

    return "–" if timestamp_us is None else f"{to_datetime(timestamp_us):%F %R} UTC"
