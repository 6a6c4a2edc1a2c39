"""The command line of the project. Each command is also a target of the Makefile."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from flywheel_ml.cli.command import run_command
from flywheel_ml.cli.commands import (
    canary,
    experiment,
    log,
    ml_test_score,
    monitoring,
    orchestration,
    predicting,
    quality,
    replay,
    retraining,
    rollout,
    stack,
    training,
)
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import QUIET
from flywheel_ml.utils.errors import ConfigError

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help=__doc__,
    pretty_exceptions_enable=False,
)
for module in (training, predicting, monitoring, orchestration, quality, retraining, replay, ml_test_score, stack):
    app.add_typer(module.app)
for name, group in (
    ("rollout", rollout.app),
    ("canary", canary.app),
    ("experiment", experiment.app),
    ("log", log.app),
):
    app.add_typer(group, name=name)

ENVIRONMENT = {**QUIET, "OMP_WAIT_POLICY": "PASSIVE"}
"""Quiet tools; OpenMP threads that busy-wait would make a shared machine many times slower."""


def main(project: Project) -> NoReturn:
    """Run a command; an error becomes one line and a non-zero exit status."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    run_command(lambda: _invoke(project))


def _invoke(project: Project) -> None:
    try:
        status = app(standalone_mode=False, obj=project)
    except typer.TyperException as error:
        if not error.format_message():  # No command was given: the help has been printed.
            sys.exit(2)
        context = getattr(error, "ctx", None)
        path = context.command_path if context else Path(sys.argv[0]).name
        raise ConfigError(f"{' '.join(error.format_message().split()).rstrip('.')}; see `{path} --help`") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status == INTERRUPTED:  # Typer reports an interrupt silently by this status.
        raise KeyboardInterrupt
    sys.exit(status)
