"""The commands of the group `experiment`: plan, report."""

import json
from datetime import datetime
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from flywheel_ml.cli.terminal import console
from flywheel_ml.core.business_metrics import MODEL_LOSS
from flywheel_ml.core.contract import to_naive_utc
from flywheel_ml.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Plan an experiment, and report what it shows so far: plan, report.")
MetricOption = Annotated[
    str, typer.Option(metavar="NAME", help="`loss`, the model's own, or a business metric such as revenue.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("report")
def experiment_report(
    ctx: typer.Context,
    metric: MetricOption = MODEL_LOSS,
    since: Annotated[datetime | None, typer.Option(help="Only rows from this time on (UTC).")] = None,
    effect: Annotated[
        float | None,
        typer.Option(help="Planned difference, in units of the metric; default: 0.1 standard deviations of a row."),
    ] = None,
    better: Annotated[
        Literal["lower", "higher"] | None,
        typer.Option(help="Direction that is better; default: lower for the loss, higher for other metrics."),
    ] = None,
    zero: Annotated[
        bool, typer.Option("--missing-as-zero", help="Rows without a value of the business metric count as 0.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Report the running experiment, or the last one: differences with intervals, guards, slices, a page."""
    from flywheel_ml.flows.experiments import reporting, text

    since_us = int((to_naive_utc(since) - datetime(1970, 1, 1)).total_seconds() * 1e6) if since else 0
    options = reporting.ReportOptions(metric, since_us, better, effect, zero)
    found = reporting.report_experiment(Settings.read(), ctx.obj.load_params(), options)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), ensure_ascii=False))
        return
    console.print(f"[bold]{escape(text.summarise(found))}[/], by {text.name_metric(found)}.", soft_wrap=True)
    table = Table("version", box=None, header_style="bold")
    for name in ("share", "rows", "errors", "values", "mean", "difference", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in text.build_rows(found):
        cells = (row.share, row.rows, row.errors, row.labelled, row.mean, row.difference, row.relative)
        table.add_row(escape(row.version), *cells)
    console.print(table)
    for arm in found.arms:
        console.print(f"version {arm.version}: [bold]{arm.verdict}[/]: {escape(arm.reason)}", soft_wrap=True)
    tripped = [(arm.version, guard) for arm in found.arms for guard in arm.guards if guard.tripped]
    for name, guard in [*(("all", guard) for guard in found.guards if guard.tripped), *tripped]:
        console.print(f"[red]guard tripped[/] ({name}): {guard.name}: {escape(guard.detail)}", soft_wrap=True)
    for note in [text.describe_method(found), *found.notes]:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
    console.print(f"report: {reporting.FOLDER / found.metric}.html", soft_wrap=True)


@app.command("plan")
def experiment_plan(
    ctx: typer.Context,
    effect: Annotated[float, typer.Option(help="Smallest difference that matters, in units of the metric.")],
    metric: MetricOption = MODEL_LOSS,
    share: Annotated[
        list[float] | None, typer.Option(help="Share of each challenger; default: of the experiment, else 0.1.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days of the log that are measured.")] = 28,
    rate: Annotated[
        float | None, typer.Option(help="Rate of a 0/1 metric, if the log has no value; gives the variance.")
    ] = None,
    deviation: Annotated[
        float | None, typer.Option(help="Standard deviation of one row, if the log has no value.")
    ] = None,
    per_day: Annotated[
        float | None, typer.Option("--rows-per-day", help="Rows with a value a day, if the log has none.")
    ] = None,
    power: Annotated[float, typer.Option(help="Probability to find the effect.")] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Plan an experiment: rows and days to find an effect, with one look at the end and with a look at any time."""
    from flywheel_ml.flows.experiments import planning

    options = planning.PlanOptions(effect, metric, tuple(share or ()), days, rate, deviation, per_day, power)
    found = planning.plan_experiment(Settings.read(), ctx.obj.load_params(), options)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), ensure_ascii=False))
        return
    for name, value in planning.describe(found):
        console.print(f"[bold]{name:14}[/] {escape(value)}", soft_wrap=True)
    table = Table("test", "rows with a value", "days", box=None, header_style="bold")
    table.columns[1].justify = table.columns[2].justify = "right"
    for row in planning.build_rows(found):
        table.add_row(*row)
    console.print(table)
    console.print(f"[dim]{escape(planning.describe_method(found))}[/]", soft_wrap=True)
