"""The project that is measured: that of the current folder."""

import tomllib
from pathlib import Path

from flywheel_ml.core.project import Project, import_reference


def package() -> str:
    """Import name of the project's package, as its command in pyproject.toml says."""
    scripts = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    return str(next(iter(scripts.values()))).partition(".")[0]


PACKAGE = package()
PROJECT: Project = import_reference(f"{PACKAGE}.project:PROJECT")
