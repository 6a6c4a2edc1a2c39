"""This repository as a clone would hold it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = REPOSITORY / "<<cookiecutter.project_slug>>"
GIT = ["git", "-c", "core.quotePath=false"]


def tracked_files() -> list[Path]:
    """Return the files of this repository that a clone would hold, relative to its root."""
    command = [*GIT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    paths = [Path(name) for name in listed.stdout.split("\0") if name]
    return [path for path in paths if (REPOSITORY / path).is_file()]


def copy_template(destination: Path) -> Path:
    """Copy the template without what git ignores: caches would be baked, or break the bake."""
    for path in tracked_files():
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / path, destination / path)
    return destination
