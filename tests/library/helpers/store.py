"""A real MLflow store, made once; and processes that open one at the same moment, as on a first morning."""

import contextlib
import shutil
from pathlib import Path

from flywheel_ml.core import bundle
from flywheel_ml.core.settings import Settings
from flywheel_ml.model.evaluation.gate import Check
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
"""A process for each argument: all open the store at the same moment, and promote the version that is named, if any."""
PASSED_CHECKS = [Check("minimum score", True, "ROC AUC 0.7, at least 0.6")]
FAILED_CHECKS = [Check("minimum score", False, "ROC AUC 0.5, at least 0.6"), Check("same answers", True, "0")]


def open_store(path: Path) -> Path:
    """MLflow's store in a folder that is not there yet."""
    from flywheel_ml.model.registration.registry import Registry

    path.mkdir(parents=True)
    with contextlib.chdir(path):
        Registry.open(settings(path), NAME)
    return path


def run_at_once(path: Path, *versions: str) -> list[str]:
    """What processes that opened the store at the same moment found there: one for each version, which it promotes."""
    done = project.run(path, "-c", OPEN, *versions)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def settings(folder: Path) -> Settings:
    """Settings of the store in a folder; by its full path, for MLflow keeps one connection to each address."""
    return Settings(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def copy_with_new_card(bundle_path: Path, to: Path) -> Path:
    """A bundle that predicts the same but is another one: its card differs."""
    shutil.copytree(bundle_path, to)
    (to / bundle.CARD).write_text(f"{to.name}\n")
    bundle.write_manifest(to, bundle.verify(bundle_path).model_dump(exclude={"files"}))
    return to
