"""Starts a retraining in a copy of the project, and waits for its result."""

from contextlib import ExitStack
from pathlib import Path

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import run_state
from flywheel_ml.flows.orchestration import engine, worker
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.retraining import clone
from flywheel_ml.flows.retraining.request import Interrupted, Request, Workspace, open_workspace
from flywheel_ml.flows.retraining.steps import RetrainingResult
from flywheel_ml.flows.versioning import git
from flywheel_ml.utils import config_model

LIBRARY = "src/flywheel_ml/flows/retraining"
WORKER = "flywheel_ml.flows.retraining.worker"


def retrain(
    project: Project, settings: Settings, progress: Progress, as_of: str = "", with_log: bool = False
) -> RetrainingResult:
    """Train the last commit on the rows before a date, in a copy of the project; the result is a branch and a version.

    The working tree and the index stay as they are, and several may run at once. If the process is killed, the same
    call completes what it began.

    Args:
        project: the project.
        settings: its settings.
        progress: prints the steps.
        as_of: end of the rows, a date or timestamp in ISO 8601; the current time if empty.
        with_log: whether labelled rows of the prediction log that are later than the table are added to it.

    Raises:
        ConfigError: there is no commit, or `as_of` is not a date.
        ProjectError: a step failed.
        Interrupted: the process of the retraining was killed.
    """
    commit = git.require_commit("retraining", LIBRARY)
    asked = Request.make(commit, Contract.load(paths.CONTRACT), as_of, with_log)
    with open_workspace(asked) as workspace, ExitStack() as stack:
        with progress.step("prepare", "flow server and copy of the project") as step:
            stack.enter_context(engine.connect_api(run_state.FOLDER / "prefect", lambda: clone.make_clone(workspace)))
            step.note = f"copy of commit {workspace.request.commit[:8]}"
            if workspace.request.id != asked.id:
                step.note += ", completing a killed retraining"
        return _run_worker(project, settings, workspace)


def _run_worker(project: Project, settings: Settings, workspace: Workspace) -> RetrainingResult:
    folder = clone.make_clone(workspace)
    workspace.result.unlink(missing_ok=True)
    arguments = (project.reference, str(workspace.folder), str(Path.cwd()))
    status = worker.run_worker(WORKER, arguments, folder, clone.build_environment(settings, folder))
    if not workspace.result.is_file():
        raise Interrupted(f"the process of the retraining ended with status {status}; the same command completes it")
    found = worker.read_answer(workspace.result)
    return config_model.parse(found["result"], RetrainingResult, name=workspace.result.name)
