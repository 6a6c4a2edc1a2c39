"""The process of a retraining: its current folder is the clone, and it imports the clone's code.

python -m flywheel_ml.flows.orchestration.die_with_parent flywheel_ml.flows.retraining.worker PROJECT WORKSPACE SOURCE
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flywheel_ml.core.paths import TRACE
from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import QUIET, Settings
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.orchestration.worker import write_answer
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.retraining.request import REQUEST, Request, Workspace
from flywheel_ml.flows.retraining.steps import RetrainingContext, RetrainingResult
from flywheel_ml.utils import config_model

NAME = "retraining"


def main(reference: str, folder: Path, source: Path) -> None:
    """Retrain, and write the result, or the error, into the workspace.

    Args:
        reference: the project, `module:attribute`.
        folder: the workspace.
        source: the project that was cloned.
    """
    os.environ.update(QUIET)
    workspace = Workspace(folder, config_model.load(folder / REQUEST, Request))

    def work() -> Mapping[str, Any]:
        return {"result": _retrain(import_reference(reference), workspace, source).model_dump(mode="json")}

    write_answer(workspace.result, NAME, source / TRACE, work)


def _retrain(project: Project, workspace: Workspace, source: Path) -> RetrainingResult:
    retrain: Callable[[RetrainingContext], RetrainingResult] = import_reference(f"{project.flows}:retrain")
    progress = Progress()
    return engine.run_flow(
        NAME, lambda: retrain(RetrainingContext.begin(project, Settings.read(), progress, workspace, source))
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
