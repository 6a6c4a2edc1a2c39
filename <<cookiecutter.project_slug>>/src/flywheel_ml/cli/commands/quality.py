"""Commands about the quality of models in service: labels, skew, staleness."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from flywheel_ml.cli.context import open_registry
from flywheel_ml.cli.terminal import console
from flywheel_ml.core.contract import to_naive_utc
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils import formatting

MAX_SHOWN_WINDOWS = 10

app = typer.Typer()


@app.command()
def labels(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Table with id and label, or entity, timestamp and label; any format."),
    ],
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="A business metric, such as revenue: the table has id and value.")
    ] = "",
) -> None:
    """Import labels, or values of a business metric, next to a running server. A repeated import has no effect."""
    from flywheel_ml.flows.quality.labelling import import_labels

    found = import_labels(source, Settings.read(), metric)
    kind = f"values of {metric}" if metric else "labels"
    skipped = f"; {formatting.rows(found.unlabelled)} without one skipped" if found.unlabelled else ""
    stored = found.labels - found.new
    console.print(f"{found.labels:,} {kind}: {found.new:,} new, {stored:,} stored before{skipped}")


@app.command()
def skew(
    ctx: typer.Context,
    rows: Annotated[int, typer.Option(min=1, help="Most predictions to replay.")] = 1000,
    since: Annotated[datetime | None, typer.Option(help="Only predictions from this time on (UTC).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random sample.")] = 0,
) -> None:
    """Replay logged requests through batch scoring and compare bit for bit. Exit status 1 if anything differs."""
    from flywheel_ml.flows.quality import skew as replay

    since_us = int((to_naive_utc(since) - datetime(1970, 1, 1)).total_seconds() * 1e6) if since else 0
    found = replay.check_skew(ctx.obj, Settings.read(), lambda: open_registry(ctx), rows, since_us, seed)
    for line in replay.describe(found):
        console.print(line, markup=False, soft_wrap=True)
    for one in found.differences[: replay.MAX_LISTED]:
        console.print(
            f"  {one.id}: {one.column} {one.logged!r} in the log, {one.batch!r} in batch", markup=False, soft_wrap=True
        )
    replay.raise_if_skewed(found)


@app.command()
def staleness(
    ctx: typer.Context,
    days: Annotated[int, typer.Option(min=1, help="Length of a window.")] = 30,
    versions: Annotated[int, typer.Option(min=1, help="How many of the newest versions.")] = 10,
) -> None:
    """Measure registered versions on newer and newer labelled rows of the raw table, and plot their decay."""
    from flywheel_ml.flows.quality.staleness import FOLDER, measure_staleness

    found = measure_staleness(ctx.obj, open_registry(ctx), ctx.obj.load_params(), days, versions)
    for name, why in found.skipped.items():
        console.print(f"version {name} was skipped: {why}", markup=False, soft_wrap=True)
    shown = formatting.METRIC_NAMES[found.metric]
    for version in found.versions:
        values = [(0.0, version.tested), *((window.age_days, window.value) for window in version.windows)]
        texts = [
            f"{age:.0f}: {formatting.metric_value(found.metric, value)}" for age, value in values if value is not None
        ]
        if len(texts) > MAX_SHOWN_WINDOWS:
            texts = [*texts[: MAX_SHOWN_WINDOWS - 2], "…", texts[-1]]
        console.print(
            f"version {version.version}, {shown} by age in days: {', '.join(texts) or 'unknown'}", soft_wrap=True
        )
    console.print(f"report: {FOLDER / 'latest.html'}", soft_wrap=True)
