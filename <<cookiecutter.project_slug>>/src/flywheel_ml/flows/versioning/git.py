"""What git knows of this project. Without git, or outside a repository, it knows nothing."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

VERSIONED = ("params.yaml", "contract.yaml", "dvc.yaml", "dvc.lock", "data/*.dvc", "reports")
"""What a run changes, or is changed by, and what a commit must hold for the run to be found again."""


def get_commit() -> str:
    """The present commit."""
    return _run_git("rev-parse", "HEAD").strip()


def is_dirty() -> bool:
    """Whether a versioned file differs from the present commit."""
    return bool(_run_git("status", "--porcelain", "--untracked-files=no"))


def list_uncommitted() -> list[str]:
    """Those of `VERSIONED` that are not as in the present commit."""
    return [name for name in VERSIONED if _run_git("status", "--porcelain", "--untracked-files=all", "--", name)]


def list_edited(paths: Sequence[Path]) -> list[str]:
    """Those of the files that git knows and that are not as in the present commit."""
    names = _run_git("diff", "--name-only", "--relative", "HEAD", "--", *map(str, paths))
    return names.splitlines()


def _run_git(*words: str) -> str:
    try:
        answer = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""
