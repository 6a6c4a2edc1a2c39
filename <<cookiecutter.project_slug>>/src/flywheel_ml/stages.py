"""The stages of dvc.yaml by name; each is a process of its own that imports what it needs and nothing else."""

from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from . import stage
from .errors import ConfigError
from .project import Project
from .strict import nearest

STAGES = {
    "ingest": "data.ingest",
    "validate": "data.validate",
    "split": "data.split",
    "train": "model.train",
    "evaluate": "model.evaluate",
    "package": "model.package",
}


def main(project: Project, arguments: Sequence[str]) -> NoReturn:
    """Run the stage that is named; its errors become one line and an exit status other than 0."""

    def run() -> None:
        name = arguments[0] if len(arguments) == 1 else ""
        if name not in STAGES:
            raise ConfigError(f"stage '{' '.join(arguments)}' is not a stage; {nearest(name, list(STAGES))}")
        import_module(f".{STAGES[name]}", __package__).main(project)

    stage.run(run)
