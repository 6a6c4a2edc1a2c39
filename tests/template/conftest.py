"""Bakes the template's tracked files into a new folder through cookiecutter's API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cookiecutter.main import cookiecutter

from checkout import REPOSITORY, copy_template

Bake = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def quiet_environment() -> Iterator[None]:
    """Keep a user's git settings, enclosing git hooks and active environments out of the bakes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith("GIT_") or name in {"VIRTUAL_ENV", "PYTHONPATH", "CI"}:
                patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        patch.setenv("DO_NOT_TRACK", "1")
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template as a clone would hold it, without what git ignores."""
    return copy_template(tmp_path_factory.mktemp("template") / "flywheel")


@pytest.fixture(scope="session")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cookiecutter settings that keep its own files out of the user's home."""
    home = tmp_path_factory.mktemp("cookiecutter")
    path = home / "settings.yaml"
    path.write_text(f"cookiecutters_dir: {home}/templates\nreplay_dir: {home}/replay\n")
    return path


@pytest.fixture(scope="session")
def bake(template: Path, settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Return a function from answers to the folder of a freshly baked project."""

    def bake(output: Path | None = None, **answers: str) -> Path:
        project = cookiecutter(
            str(template),
            no_input=True,
            extra_context=answers,
            output_dir=str(output or tmp_path_factory.mktemp("bake")),
            config_file=str(settings_file),
        )
        return Path(project)

    return bake


@pytest.fixture(scope="session")
def baked(bake: Bake) -> Path:
    """The default project, to be read and not changed."""
    return bake()


def read_questions() -> dict[str, Any]:
    """Return cookiecutter.json's questions and defaults, without derived and private values."""
    asked = json.loads((REPOSITORY / "cookiecutter.json").read_text(encoding="utf-8"))
    return {key: value for key, value in asked.items() if not key.startswith("_")}


def option_cases() -> list[dict[str, str]]:
    """Return the default answers and, for every further choice of an option, that answer."""
    options = {key: value for key, value in read_questions().items() if isinstance(value, list)}
    return [{}] + [{key: choice} for key, choices in options.items() for choice in choices[1:]]


def case_name(case: dict[str, str]) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items()) or "default"
