"""Commands that predict: serve, score, window, explain."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flywheel_ml.cli import terminal
from flywheel_ml.cli.context import open_registry, run_flow
from flywheel_ml.cli.terminal import console
from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings

app = typer.Typer()


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
        done = run_flow(
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


@app.command()
def explain(
    ctx: typer.Context,
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Id of the prediction, from its response.")],  # noqa: A002
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Explain a logged prediction: what each column contributed to its score."""
    from flywheel_ml.flows.explaining import explain_logged

    found = explain_logged(ctx.obj, id, Settings.read(), lambda: open_registry(ctx))
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        terminal.show_explanation(found)
