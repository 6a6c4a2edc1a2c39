"""A real MLflow store, made once: several processes open it at the same moment, as on a first morning."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from << cookiecutter.package_name >> import bundle
from << cookiecutter.package_name >>.model.gate import Check
from << cookiecutter.package_name >>.settings import Settings

from . import project

NAME = "small"
OPEN = f"""
import sys
from {project.PACKAGE}.errors import ProjectError
from {project.PACKAGE}.model.registry import Registry
from {project.PACKAGE}.settings import Settings
registry = Registry.open(Settings.read(), {NAME!r})
print(len(registry.versions()), flush=True)
for number in sys.stdin:
    try:
        registry.promote(number.strip(), None)
    except ProjectError as error:
        print(type(error).__name__, error)
    else:
        print("promoted")
"""
"""Opens the store, says how many versions there are, then promotes what it reads, expecting no champion."""
PASSED = [Check("metric floor", True, "ROC AUC 0.7, floor 0.6")]
REFUSED = [Check("metric floor", False, "ROC AUC 0.5, floor 0.6"), Check("same answers", True, "0")]


class Store(NamedTuple):
    """MLflow's store as four processes left it that opened it at once: their answers, two of them, and a copy of it."""

    path: Path
    answers: list[str]
    promoters: Sequence[subprocess.Popen[str]]
    untouched: Path


@contextmanager
def opened_by_four(path: Path) -> Iterator[Store]:
    """The store at `path`, which is not there yet."""
    path.mkdir()
    with ExitStack() as stack:
        processes = [stack.enter_context(project.start(path, "-c", OPEN, stdin=subprocess.PIPE)) for _ in range(4)]
        answers = [process.stdout.readline() for process in processes if process.stdout]
        yield Store(path, answers, processes[:2], shutil.copytree(path, path.with_name("untouched")))
        for process in processes:
            process.communicate(timeout=60)


def settings(folder: Path) -> Settings:
    """Settings of the store in a folder; by its full path, for MLflow keeps one connection to each address."""
    return Settings(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def another(bundle_path: Path, to: Path) -> Path:
    """A bundle that predicts the same but is another one: its card differs."""
    shutil.copytree(bundle_path, to)
    (to / bundle.CARD).write_text(f"{to.name}\n")
    bundle.seal(to, bundle.verify(bundle_path).model_dump(exclude={"files"}))
    return to
