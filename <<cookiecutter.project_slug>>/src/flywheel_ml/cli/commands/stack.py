"""Commands about containers: image, stack, unstack."""

from typing import Annotated

import typer
from rich.table import Table

from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.deployment import stack as deployment

app = typer.Typer()

BuildOptions = Annotated[
    str, typer.Option("--build-options", metavar="TEXT", help="Further options of `docker build`.")
]
SERVICES = {
    "SERVE_PORT": "predictions",
    "MLFLOW_PORT": "MLflow: runs and models",
    "PREFECT_PORT": "Prefect: flows and schedules",
    "PROMETHEUS_PORT": "Prometheus: metrics and alerts",
    "ALERTMANAGER_PORT": "Alertmanager",
    "GRAFANA_PORT": "Grafana; user admin, password in var/stack/grafana_password",
}


@app.command()
def image(
    train: Annotated[bool, typer.Option("--train", help="Build the image for training instead.")] = False,
    build_options: BuildOptions = "",
) -> None:
    """Build the image of the server, or the one for training."""
    name = deployment.read_name()
    name, target = (f"{name}-train", "train") if train else (name, "serve")
    built = deployment.build_image(deployment.open_docker(), name, target, build_options)
    console.print(f"Image {built.name}: {built.megabytes:.0f} MB, its base image included.")


@app.command()
def stack(
    profile: Annotated[str, typer.Option(metavar="NAME", help="A profile of deploy/compose.yaml: grafana.")] = "",
    build_options: BuildOptions = "",
) -> None:
    """Build the images and start the whole stack of containers; a running one is brought up to date."""
    settings = Settings.read()
    deployment.check_project(settings)
    with console.status("building the images and starting the containers; var/stack.log has the output"):
        ports = deployment.start(deployment.open_docker(), settings, build_options, profile)
    table = Table(box=None, show_header=False)
    for variable, port in ports.items():
        table.add_row(f"http://127.0.0.1:{port}", SERVICES[variable])
    console.print(table)
    console.print("The key for requests is in var/stack/api_key. Remove the stack with `make unstack`.", soft_wrap=True)


@app.command()
def unstack(
    volumes: Annotated[bool, typer.Option("--volumes", help="Remove its data too.")] = False,
) -> None:
    """Remove the containers of the stack; its data stay unless --volumes is given."""
    deployment.remove(deployment.open_docker(), volumes)
    console.print(f"The stack is removed{', with its data' if volumes else '; its data are kept'}.")
