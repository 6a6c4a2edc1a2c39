"""Both consoles, shown for one small project by the command itself; a registry with two versions."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from flywheel_ml.core.settings import Settings
from library.helpers import project, store

if TYPE_CHECKING:
    # Heavy, and imported where they are used: the process that hands out the tests needs none of it.
    from flywheel_ml.model.registration.registry import Registry


class Pages(NamedTuple):
    """A running `ui`: its project, its process, its lines and the addresses that they name."""

    path: Path
    process: subprocess.Popen[str]
    lines: list[str]
    mlflow: str
    prefect: str


@pytest.fixture(scope="module")
def pages(trained_project: project.PipelineRuns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    path = project.copy(trained_project.path, tmp_path_factory.mktemp("pages") / "project", history=True)
    with project.start(path, "-m", project.PACKAGE, "ui", stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        addresses = re.findall(r"http://127\.0\.0\.1:\d+", "".join(lines))
        yield Pages(path, process, lines, *addresses)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def rolled_out(fresh_store: Path, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose registry has two versions that passed; the first is champion and serves, the second challenges."""
    from flywheel_ml.flows import rollout
    from flywheel_ml.model.registration.registry import Registry

    path = shutil.copytree(fresh_store, tmp_path_factory.mktemp("rolled out") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        registry = Registry.open(store.settings(path), store.NAME)
        for name in ("first", "second"):
            registry.register(
                store.copy_with_new_card(bundle_path, path.with_name(name)), store.PASSED_CHECKS, {}, {}, []
            )
        registry.promote("1", None)
        rollout.sync(registry, store.settings(path), why="first champion")
        registry.set_challenger("2")
    return path


@pytest.fixture
def settings(folder: Path) -> Settings:
    """Settings of the store in the current folder."""
    return store.settings(folder)


@pytest.fixture
def two(rolled_out: Path, folder: Path) -> "Registry":
    """The registry with two versions, moved into the current folder."""
    from flywheel_ml.model.registration.registry import Registry

    shutil.copytree(rolled_out, folder, dirs_exist_ok=True)
    return Registry.open(store.settings(folder), store.NAME)
