"""The command `replay`: the project lives through the past of a table."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli.terminal import console
from flywheel_ml.utils.errors import ConfigError, GateRefusal

app = typer.Typer()


@app.command()
def replay(
    ctx: typer.Context,
    data: Annotated[
        str, typer.Option(metavar="TABLE", help="A table to adopt for the replay; default: the project's own.")
    ] = "",
    target: Annotated[str, typer.Option(metavar="COLUMN", help="With --data: the column to predict.")] = "",
    time: Annotated[
        str, typer.Option(metavar="COLUMN", help="With --data: the time of each row; default: detected.")
    ] = "",
    train: Annotated[
        int | None, typer.Option(min=1, help="Periods that the first model learns from; default: half of them.")
    ] = None,
    label_delay: Annotated[
        int, typer.Option(min=0, help="Quarters of a period between a prediction and its label.")
    ] = 1,
    api_rows: Annotated[int, typer.Option(min=1, help="Rows of a period that go through the API.")] = 6000,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Instead, monitor a made-up stream with faults that must be found.")
    ] = False,
) -> None:
    """Train on the first periods of the table, then live through the others month by month, and report it."""
    if synthetic:
        _replay_synthetic(ctx)
        return
    from flywheel_ml.flows.progress import Progress
    from flywheel_ml.flows.replay import launch
    from flywheel_ml.flows.replay.params import ReplayParams
    from flywheel_ml.monitoring.replay import summary

    if bool(data) != bool(target):
        raise ConfigError("DATA and TARGET go together: make replay DATA=table.csv TARGET=column")
    params = ReplayParams(train_periods=train, label_delay_parts=label_delay, api_rows=api_rows)
    adopted = launch.AdoptedTable(data, target, time) if data else None
    found = launch.replay(ctx.obj, params, Progress(console), adopted)
    console.print(f"[bold]{escape(summary.write_headline(found))}[/]", soft_wrap=True)
    for sentence in summary.write_sentences(found):
        console.print(escape(sentence), soft_wrap=True)
    console.print(f"report: {launch.REPORTS / 'latest.html'}", soft_wrap=True)


def _replay_synthetic(ctx: typer.Context) -> None:
    from flywheel_ml.flows.replay.synthetic.run import REPORT, run_synthetic

    monitor = ctx.obj.load_params().monitor
    with console.status("training a small model"):
        found = run_synthetic(monitor)
    every = [f"every {one.every:,}" for one in found.periodic]
    table = Table("fault", "what happens", "limit", "monitoring", *every, "found by", box=None, header_style="bold")
    for one in found.detections:
        delays = (one.delay, *one.periodic_delays)
        table.add_row(one.name, one.what, f"{one.limit}", *map(_show_delay, delays), escape(one.sign or "–"))
    console.print(
        f"Windows of {found.window_rows:,} rows until each fault was found; alarms every N rows for comparison:"
    )
    console.print(table)
    for alarms in (found.monitoring, *found.periodic):
        name = "monitoring" if alarms.every is None else f"every {alarms.every:,} rows"
        console.print(
            f"[bold]{name}[/]: {alarms.in_time} of {len(found.detections)} found in time, {alarms.false} false alarms "
            f"in {alarms.clean_windows} clean windows, precision {alarms.precision:.0%}",
            soft_wrap=True,
        )
    console.print(f"{found.windows} windows in {found.seconds:.0f} s; report: {REPORT}", soft_wrap=True)
    if found.late:
        raise GateRefusal(
            f"not found in time: {', '.join(found.late)}; thresholds under monitor in params.yaml hide these faults"
        )


def _show_delay(delay: int | None) -> str:
    return "[red]no[/]" if delay is None else str(delay)
