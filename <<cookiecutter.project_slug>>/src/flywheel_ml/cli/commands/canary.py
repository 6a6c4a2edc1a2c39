"""Commands of the canary: start, status, step, approve."""

import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flywheel_ml.cli import canary_terminal
from flywheel_ml.cli.terminal import console
from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ProjectError

if TYPE_CHECKING:
    from flywheel_ml.flows.canary.controller import Look

app = typer.Typer(
    no_args_is_help=True,
    help="Give the challenger a rising share of the traffic, and promote it or roll it back by evidence.",
)


@app.command()
def start(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(help="Version number; default: the challenger.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Then look again and again until the canary is over.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 60.0,
) -> None:
    """Start a canary with a shadow step, or show the one that is running."""
    from flywheel_ml.core import serving_folder
    from flywheel_ml.flows import rollout
    from flywheel_ml.flows.canary import controller, starting

    settings, params = Settings.read(), ctx.obj.load_params()
    found = controller.inspect(ctx.obj, settings, params)
    if found.is_idle:
        starting.start(ctx.obj, settings, params, version)
        now = serving_folder.read_routing(settings.serving_folder)
        console.print(f"Serving: {rollout.describe_routing(now)}; servers follow within a second.")
        if not watch:
            console.print("Next: `make canary-step` looks once, `make schedules` every five minutes.")
    else:
        if version and found.plan is not None and found.plan.versions != version:
            raise ProjectError(f"an experiment with version {found.plan.versions} is running; end it first: make abort")
        _show(found)
    if watch:
        _watch(ctx, every)


@app.command()
def status(ctx: typer.Context) -> None:
    """Show the running canary, its evidence, and what the next look would decide."""
    from flywheel_ml.flows.canary.controller import inspect

    _show(inspect(ctx.obj, Settings.read(), ctx.obj.load_params()))


@app.command()
def step(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until the canary is over.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 60.0,
) -> None:
    """Look at the canary once: decide by the evidence so far, and carry the decision out."""
    from flywheel_ml.flows.canary.controller import look

    if watch:
        _watch(ctx, every)
        return
    found = look(ctx.obj, Settings.read(), ctx.obj.load_params())
    _show(found)
    if found.outcome is not None and not found.outcome.succeeded:
        raise ProjectError(f"canary: {found.action}: {found.outcome.text}")


@app.command()
def approve(ctx: typer.Context) -> None:
    """Carry out the promotion or rollback that waits for a person; it is decided again first."""
    from flywheel_ml.flows.canary.controller import look

    found = look(ctx.obj, Settings.read(), ctx.obj.load_params(), approve=True)
    canary_terminal.show_look(found)
    if found.outcome is None:
        raise ProjectError(f"nothing was approved: {found.reason}")
    if not found.outcome.succeeded:
        raise ProjectError(f"canary: {found.action}: {found.outcome.text}")


def _show(found: "Look") -> None:
    """Show a look; one that found nothing out is an error."""
    if found.is_unknown:
        raise ProjectError(found.reason)
    canary_terminal.show_look(found)


def _watch(ctx: typer.Context, seconds: float) -> None:
    from flywheel_ml.flows.canary.controller import look
    from flywheel_ml.flows.canary.scheduled import watch

    # An interruption after any step is safe, so there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings, params = Settings.read(), ctx.obj.load_params()
    watch(lambda: look(ctx.obj, settings, params), canary_terminal.show_look, seconds)
