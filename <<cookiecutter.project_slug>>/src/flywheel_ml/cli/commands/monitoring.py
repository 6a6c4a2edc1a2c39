"""Commands of monitoring: monitor, alerts."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flywheel_ml.cli import terminal
from flywheel_ml.cli.context import run_flow
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.units import parse_duration

if TYPE_CHECKING:
    from flywheel_ml.monitoring.run import MonitoringRun

app = typer.Typer()


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
        return run_flow("monitoring", window, prefect)

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
