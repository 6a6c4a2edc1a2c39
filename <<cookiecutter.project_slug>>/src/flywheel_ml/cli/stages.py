"""The stages of dvc.yaml by name; each runs in its own process and imports only what it needs."""

from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from flywheel_ml.cli.command import run_command
from flywheel_ml.core.project import Project
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError

STAGES = {
    "ingest": "flywheel_ml.data.ingest",
    "validate": "flywheel_ml.data.validate",
    "split": "flywheel_ml.data.split",
    "train": "flywheel_ml.model.training.train",
    "evaluate": "flywheel_ml.model.evaluation.evaluate",
    "package": "flywheel_ml.model.packaging.package",
}


def main(project: Project, arguments: Sequence[str]) -> NoReturn:
    """Run the named stage; an error becomes one line and a non-zero exit status."""

    def run() -> None:
        name = arguments[0] if len(arguments) == 1 else ""
        if name not in STAGES:
            raise ConfigError(f"stage '{' '.join(arguments)}' is not a stage; {suggest(name, list(STAGES))}")
        import_module(STAGES[name]).main(project)

    run_command(run)
