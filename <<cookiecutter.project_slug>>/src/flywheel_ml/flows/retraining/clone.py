"""The copy of the project that a retraining works in: a clone that shares git's objects and DVC's cache."""

import os
import shutil
from pathlib import Path

from dotenv import dotenv_values

from flywheel_ml.core import paths
from flywheel_ml.core.settings import PREFIX, Settings
from flywheel_ml.flows.retraining.request import Request, Workspace
from flywheel_ml.flows.versioning import dvc_stages, git
from flywheel_ml.utils.files import replacing_folder


def make_clone(workspace: Workspace) -> Path:
    """Clone the repository at the commit of the request; return the project's folder in the clone.

    Nothing is written to the repository itself. A complete clone that a killed process left is used again.
    """
    top, inside = Path(git.call_git("rev-parse", "--show-toplevel").strip()), git.call_git("rev-parse", "--show-prefix")
    folder = workspace.clone / inside.strip()
    if workspace.clone.is_dir():
        return folder
    with replacing_folder(workspace.clone) as part:
        git.call_git("clone", "--quiet", "--shared", "--no-checkout", "--template=", str(top), str(part))
        branch, commit = workspace.request.branch, workspace.request.commit
        git.call_git("checkout", "--quiet", "-b", branch, commit, folder=part)
        project = part / inside.strip()
        git.copy_identity(part)
        dvc_stages.share_cache(project)
        if paths.PROFILE_BINS.is_file() and not (project / paths.PROFILE_BINS).is_file():
            # Versions with equal bins can be compared by their profiles.
            shutil.copyfile(paths.PROFILE_BINS, project / paths.PROFILE_BINS)
    return folder


def build_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Build the environment of a process in the clone: its code, and the stores of this project.

    Args:
        settings: of this project; relative paths become absolute.
        folder: the project's folder in the clone.
    """
    local = {
        "serving_folder": str(settings.serving_folder.absolute()),
        "log_spool_folder": str(settings.log_spool_folder.absolute()),
    }
    for name in ("artifact_root", "prediction_log"):
        value = getattr(settings, name)
        local[name] = value if "://" in value else str(Path(value).absolute())
    kind, separator, path = settings.tracking_uri.partition("sqlite:///")
    local["tracking_uri"] = f"{separator}{Path(path).absolute()}" if separator and not kind else settings.tracking_uri
    own = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return {
        **own,
        **os.environ,
        **{PREFIX + name.upper(): value for name, value in local.items()},
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder / "src"), os.environ.get("PYTHONPATH")))),
    }


def commit_result(request: Request, message: str) -> str:
    """Commit everything that the run changed in the clone, the current folder, and return the hash of the commit."""
    _remove_locks(request)
    git.call_git("add", "--all", "--", ".")
    if git.call_git("diff", "--cached", "--name-only"):
        git.call_git("-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message", message)
    # The repository receives the commits and the branch in one step.
    git.call_git("push", "--quiet", "origin", f"HEAD:refs/heads/{request.branch}")
    return git.get_commit()


def _remove_locks(request: Request) -> None:
    """Remove the locks that a killed git left on the clone and on the branch, which belong to this retraining alone."""
    own = Path(git.call_git("rev-parse", "--absolute-git-dir").strip())
    origin = Path(git.call_git("remote", "get-url", "origin").strip())
    shared = origin / git.call_git("rev-parse", "--git-common-dir", folder=origin).strip()
    for path in (*own.rglob("*.lock"), shared / "refs" / "heads" / f"{request.branch}.lock"):
        path.unlink(missing_ok=True)
