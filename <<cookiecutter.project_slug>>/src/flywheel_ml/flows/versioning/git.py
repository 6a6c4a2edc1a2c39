"""Queries git about this project; without git or outside a repository, all results are empty."""

import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.process import get_user_name

VERSIONED = (
    "params.yaml",
    "contract.yaml",
    "dvc.yaml",
    "dvc.lock",
    "profile_bins.json",
    "compute_baseline.json",
    "data/*.dvc",
    "reports",
)
"""Files that a run reads or changes, and that a commit must contain to reproduce the run."""
_REVIEWER = re.compile(r"([^<>]+)<([^<>\s@]+@[^<>\s@]+)>")


def get_commit() -> str:
    """Return the hash of the current commit."""
    return _run_git("rev-parse", "HEAD").strip()


def require_commit(work: str, library: str) -> str:
    """Return the hash of the current commit, for work in a copy of it.

    Args:
        work: its name, for errors.
        library: path of its code, which the copy runs.

    Raises:
        ConfigError: there is no commit, or it lacks the code.
    """
    commit = get_commit()
    if not commit:
        raise ConfigError(
            f"{work} starts from a commit, and this folder has none; run git init, git add --all and git commit"
        )
    if not has_path(commit, library):
        raise ConfigError(f"the last commit has no {library}; commit the updated library, then run it again")
    return commit


def is_dirty() -> bool:
    """Whether a tracked file differs from the current commit."""
    return bool(_run_git("status", "--porcelain", "--untracked-files=no"))


def list_uncommitted() -> list[str]:
    """List the entries of `VERSIONED` that differ from the current commit."""
    return [name for name in VERSIONED if _run_git("status", "--porcelain", "--untracked-files=all", "--", name)]


def list_edited(paths: Sequence[Path]) -> list[str]:
    """List the given files that git tracks and that differ from the current commit."""
    names = _run_git("diff", "--name-only", "--relative", "HEAD", "--", *map(str, paths))
    return names.splitlines()


class LastChange(NamedTuple):
    """The last commit that changed some files: its hash, time, author's address, and who reviewed it.

    Reviewers are named by the trailers `Reviewed-by: Name <address>` and `Approved-by:` of its message. Who has the
    name or the address of the author does not count, nor who has no address.
    """

    commit: str
    at: datetime
    reviewers: tuple[str, ...]


def find_last_change(*paths: str) -> LastChange | None:
    """Find the last commit that changed one of these files or folders; None if they were never committed."""
    trailers = "".join(f"%(trailers:key={key},valueonly,separator=%x1e)%x1e" for key in ("Reviewed-by", "Approved-by"))
    found = _run_git("log", "-1", f"--format=%H%x1f%cI%x1f%an%x1f%ae%x1f{trailers}", "--", *paths).strip("\n")
    if not found:
        return None
    commit, at, *author, reviewers = found.split("\x1f")
    own = {one.strip().casefold() for one in author}
    others = []
    for one in reviewers.split("\x1e"):
        match = _REVIEWER.fullmatch(one.strip())
        if match and not own & {part.strip().casefold() for part in match.groups()}:
            others.append(one.strip())
    return LastChange(commit, datetime.fromisoformat(at), tuple(others))


def list_changed(*paths: str) -> list[str]:
    """List the files at these paths that differ from the current commit, new ones included."""
    return [line[3:] for line in _run_git("status", "--porcelain", "--untracked-files=all", "--", *paths).splitlines()]


def call_git(*words: str, folder: Path = Path()) -> str:
    """Run git in a folder, without hooks and without touching the index of a status query; return its output.

    Raises:
        ProjectError: git is not installed, or the command failed.
    """
    command = ["git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", *words]
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ProjectError("git is not installed; install it to retrain") from None
    if answer.returncode:
        raise ProjectError(f"git {words[0]}: {' '.join(answer.stderr.split())[:300]}")
    return answer.stdout


def has_path(commit: str, path: str) -> bool:
    """Whether a commit has a file or folder at this path, relative to the current folder."""
    return bool(_run_git("ls-tree", commit, "--", path))


def get_identity() -> tuple[str, str]:
    """Return name and address for commits: as git is configured, or else the user's name on this machine."""
    name, email = (_run_git("config", key).strip() for key in ("user.name", "user.email"))
    return name or get_user_name(), email or f"{get_user_name()}@localhost"


def copy_identity(folder: Path) -> None:
    """Let commits in another repository have the name and the address of this one's."""
    for key, value in zip(("user.name", "user.email"), get_identity(), strict=True):
        call_git("config", key, value, folder=folder)


def _run_git(*words: str) -> str:
    try:
        answer = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""
