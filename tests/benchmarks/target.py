"""The project to measure, from the current folder."""

import tomllib
from pathlib import Path

from flywheel_ml.core.project import Project, import_reference


def read_package() -> str:
    """Return the import name of the project's package, from its command in pyproject.toml."""
    scripts = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    return str(next(iter(scripts.values()))).partition(".")[0]


PACKAGE = read_package()
PROJECT: Project = import_reference(f"{PACKAGE}.project:PROJECT")
