"""Commands of the rollout: start, status, promote, abort, rollback, sync."""

import signal
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli import terminal
from flywheel_ml.cli.context import open_registry
from flywheel_ml.cli.terminal import console
from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ConfigError

DEFAULT_SHARE = 0.1

app = typer.Typer(
    no_args_is_help=True,
    help="Choose which version serves which share of the traffic: start, status, promote, abort, rollback, sync.",
)


@app.command()
def start(
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
    now = rollout.start_arms(open_registry(ctx), Settings.read(), list(zip(numbers, shares, strict=True)), why)
    console.print(f"Serving: {rollout.describe_routing(now)}; servers follow within a second.")


@app.command()
def status(
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

    settings, registry = Settings.read(), open_registry(ctx)
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


@app.command()
def promote(
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

    promoted = rollout.promote(open_registry(ctx), Settings.read(), version, override, why)
    console.print(f"Version {promoted.number} is champion; servers follow within a second.")


@app.command()
def abort(
    ctx: typer.Context,
    why: Annotated[str, typer.Option(metavar="REASON", help="Reason for the audit log.")] = "aborted",
) -> None:
    """End the experiment; the champion answers all requests."""
    from flywheel_ml.flows import rollout

    now = rollout.abort(open_registry(ctx), Settings.read(), why)
    console.print(f"Serving: {rollout.describe_routing(now)} alone; servers follow within a second.")


@app.command()
def rollback(
    ctx: typer.Context,
    why: Annotated[str, typer.Option(metavar="REASON", help="Reason for the audit log.")] = "rolled back",
) -> None:
    """Make the previous champion champion again; a running experiment ends."""
    from flywheel_ml.flows import rollout

    promoted = rollout.rollback(open_registry(ctx), Settings.read(), why)
    console.print(f"Version {promoted.number} is champion again; servers follow within a second.")


@app.command()
def sync(
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
            lambda: open_registry(ctx),
            Settings.read(),
            every,
            lambda line: print(f"{datetime.now(UTC):%FT%TZ} {line}", flush=True),
        )
    now = rollout.sync(open_registry(ctx), Settings.read(), why="synced")
    console.print(f"The serving folder holds {rollout.describe_routing(now)}.")
