"""Commands of Prefect and MLflow: schedules, ui."""

import os
from pathlib import Path

import typer

from flywheel_ml.cli.terminal import console
from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings

app = typer.Typer()


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


@app.command()
def ui() -> None:
    """Start the web UIs of MLflow and Prefect, and print their addresses."""
    from flywheel_ml.flows.orchestration import web_ui
    from flywheel_ml.flows.progress import Progress
    from flywheel_ml.model.registration.registry import Registry

    settings = Settings.read()
    Registry.open(settings, Contract.load(paths.CONTRACT).name)
    web_ui.serve_pages(settings, Progress(console))
