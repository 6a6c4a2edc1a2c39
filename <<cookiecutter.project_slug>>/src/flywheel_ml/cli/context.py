"""What several commands need: the registry of the project, and a flow with or without Prefect."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

R = TypeVar("R")


def run_flow(name: str, body: Callable[[], R], prefect: bool) -> R:
    """Run `body`, under Prefect if requested or if an API is configured."""
    from flywheel_ml.flows import run_state
    from flywheel_ml.flows.orchestration import engine

    if not prefect and not engine.has_api():
        return body()
    with engine.connect_api(run_state.FOLDER / "prefect"):
        return engine.run_flow(name, body)


def open_registry(ctx: typer.Context) -> "Registry":
    """Open the project's registry."""
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(Settings.read(), Contract.load(paths.CONTRACT).name, ctx.obj)
