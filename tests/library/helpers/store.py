"""A real MLflow store, made once, and processes that open a store simultaneously."""

import contextlib
import shutil
from pathlib import Path

from flywheel_ml.core import bundle
from flywheel_ml.core.settings import Settings
from flywheel_ml.model.evaluation.gate import GateResult
from library.helpers import project

NAME = "small"
OPEN = f"""
import multiprocessing, sys
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.core.settings import Settings

def one(start, promote):
    start.wait()
    registry = Registry.open(Settings.read(), {NAME!r})
    if promote is None:
        answer = len(registry.list_versions())
    else:
        start.wait()
        try:
            answer = f"promoted {{registry.promote(promote, None).number}}"
        except ProjectError as error:
            answer = f"{{type(error).__name__}} {{error}}"
    print(answer, flush=True)

versions = [version or None for version in sys.argv[1:]]
fork = multiprocessing.get_context("fork")  # The imports, seconds of them, happen once.
start = fork.Barrier(len(versions))
processes = [fork.Process(target=one, args=(start, version)) for version in versions]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""
"""Starts a process for each argument: all open the store simultaneously and promote the given version, if any."""
PASSED_CHECKS = [GateResult("minimum score", True, "ROC AUC 0.7, at least 0.6")]
FAILED_CHECKS = [GateResult("minimum score", False, "ROC AUC 0.5, at least 0.6"), GateResult("same answers", True, "0")]


def open_store(path: Path) -> Path:
    """Create MLflow's store in a new folder."""
    from flywheel_ml.model.registration.registry import Registry

    path.mkdir(parents=True)
    with contextlib.chdir(path):
        Registry.open(settings(path), NAME)
    return path


def run_at_once(path: Path, *versions: str) -> list[str]:
    """Run one process per version that opens the store simultaneously and promotes it; returns their output."""
    done = project.run(path, "-c", OPEN, *versions)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def settings(folder: Path) -> Settings:
    """Return settings for the store in a folder, by its full path, because MLflow caches connections by address."""
    return Settings(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def copy_with_new_card(bundle_path: Path, to: Path) -> Path:
    """Copy a bundle with a different card, so that it predicts the same but has another digest."""
    shutil.copytree(bundle_path, to)
    (to / bundle.CARD).write_text(f"{to.name}\n")
    bundle.write_manifest(to, bundle.verify(bundle_path).model_dump(exclude={"files"}))
    return to
