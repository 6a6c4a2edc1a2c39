"""Queries git about this project; without git or outside a repository, all results are empty."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

VERSIONED = ("params.yaml", "contract.yaml", "dvc.yaml", "dvc.lock", "profile_bins.json", "data/*.dvc", "reports")
"""Files that a run reads or changes, and that a commit must contain to reproduce the run."""


def get_commit() -> str:
    """Return the hash of the current commit."""
    return _run_git("rev-parse", "HEAD").strip()


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


def _run_git(*words: str) -> str:
    try:
        answer = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""
