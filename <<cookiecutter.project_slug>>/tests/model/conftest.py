"""A real MLflow store, made once: several processes open it at the same moment, as on a first morning."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from << cookiecutter.package_name >>.model.gate import Check
from << cookiecutter.package_name >>.model.registry import Registry, Version
from << cookiecutter.package_name >>.settings import Settings

from .. import project

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


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("store") / "project"
    path.mkdir()
    with ExitStack() as stack:
        processes = [stack.enter_context(project.start(path, "-c", OPEN, stdin=subprocess.PIPE)) for _ in range(4)]
        answers = []
        for process in processes:
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        yield Store(path, answers, processes[:2], shutil.copytree(path, path.with_name("untouched")))
        for process in processes:
            process.communicate(timeout=60)


@pytest.fixture
def folder(fresh_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fresh store, as the current folder."""
    path = shutil.copytree(fresh_store.untouched, tmp_path / "project")
    monkeypatch.chdir(path)
    return path


def settings(folder: Path) -> Settings:
    """Settings of the store in a folder; by its full path, for MLflow keeps one connection to each address."""
    return Settings(tracking_uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def registry(folder: Path) -> Registry:
    return Registry.open(settings(folder), NAME)


@pytest.fixture
def register(registry: Registry, bundle_path: Path) -> Callable[[Sequence[Check]], Version]:
    """Registers the tiny bundle with the answers of gates."""

    def call(checks: Sequence[Check]) -> Version:
        return registry.register(bundle_path, checks, {"seed": 1}, {"git_commit": "abc"}, [])

    return call
