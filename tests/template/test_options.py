"""Every option's bake is whole and clean. The cases are read from cookiecutter.json itself."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from checkout import GIT, REPOSITORY
from conftest import Bake, case_name, option_cases, read_questions

EMPTY_BY_DESIGN = {"__init__.py", "py.typed"}
DELIMITER = re.compile(r"<<|>>|<%|%>|<#|#>|\bcookiecutter\.[a-z_]+")
# The same characters in their own right: doctests and shell redirections.
ALLOWED = re.compile(r"^\s*>>> |(?<![<>])>>(?![<>]) *[\"$~./\w&]")

Bakes = dict[str, Path]


@pytest.fixture(scope="module")
def bakes(bake: Bake) -> Bakes:
    return {case_name(case): bake(**case) for case in option_cases()}


@pytest.fixture(params=[case_name(case) for case in option_cases()])
def project(request: pytest.FixtureRequest, bakes: Bakes) -> Path:
    return bakes[request.param]


def files(project: Path) -> list[Path]:
    """Return the project's files, git's own apart."""
    return [
        path
        for path in sorted(project.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(project).parts
    ]


def texts(project: Path) -> list[tuple[Path, str]]:
    found = []
    for path in files(project):
        content = path.read_bytes()
        if b"\0" not in content:
            found.append((path, content.decode("utf-8")))
    return found


def test_no_template_syntax_remains(project: Path) -> None:
    left = [str(path) for path in project.rglob("*") if re.search(r"[<>%#]", path.name)]
    for path, text in texts(project):
        for number, line in enumerate(text.splitlines(), start=1):
            if DELIMITER.search(line) and not ALLOWED.search(line):
                left.append(f"{path.relative_to(project)}:{number}: {line}")
    assert left == []


def test_no_folder_or_file_is_empty(project: Path) -> None:
    folders = [
        path
        for path in project.rglob("*")
        if path.is_dir() and ".git" not in path.parts and not any(path.iterdir())
    ]
    hollow = [
        path
        for path, text in texts(project)
        if not text.strip() and path.name not in EMPTY_BY_DESIGN
    ]
    assert folders + hollow == []


def test_every_text_file_ends_with_one_newline(project: Path) -> None:
    ragged = [
        str(path.relative_to(project))
        for path, text in texts(project)
        if text and (not text.endswith("\n") or text.endswith("\n\n"))
    ]
    assert ragged == []


def test_toml_yaml_json_and_python_are_valid(project: Path) -> None:
    for path in files(project):
        if path.suffix == ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in {".yaml", ".yml"}:
            list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        elif path.suffix in {".json", ".ipynb"}:
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".py":
            ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_formatter_and_linter_change_nothing(project: Path) -> None:
    for arguments in (["format", "--check", "--no-cache"], ["check", "--no-cache"]):
        command = [sys.executable, "-m", "ruff", *arguments, "."]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def test_first_commit_contains_everything(project: Path) -> None:
    def git(*arguments: str) -> list[str]:
        command = [*GIT, *arguments]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert git("status", "--porcelain", "--ignored") == []
    assert git("log", "--format=%an <%ae>") == ["Your Name <you@example.com>"]
    assert git("branch", "--show-current") == ["main"]
    assert sorted(git("ls-files")) == sorted(
        str(path.relative_to(project)) for path in files(project)
    )


def test_license_is_the_chosen_one(bakes: Bakes) -> None:
    openings = {
        "MIT": "MIT License",
        "Apache-2.0": "Apache License",
        "BSD-3-Clause": "BSD 3-Clause License",
        "Proprietary": "Copyright (c) Your Name. All rights reserved.",
    }
    assert set(openings) == set(read_questions()["license"])
    for choice, opening in openings.items():
        project = bakes.get(f"license={choice}", bakes["default"])
        text = (project / "LICENSE").read_text()
        assert text.lstrip().startswith(opening)
        assert "Your Name" in text
        assert [path.name for path in project.glob("LICENSE*")] == ["LICENSE"]


def test_remote_is_the_chosen_one(bakes: Bakes) -> None:
    urls = {
        "local": "../.dvc-storage",
        "s3": "s3://your-bucket/flight-delays",
        "gcs": "gs://your-bucket/flight-delays",
        "azure": "azure://your-container/flight-delays",
    }
    extras = {"local": "dvc", "s3": "dvc[s3]", "gcs": "dvc[gs]", "azure": "dvc[azure]"}
    assert set(urls) == set(read_questions()["data_remote"])
    for choice, url in urls.items():
        project = bakes.get(f"data_remote={choice}", bakes["default"])
        assert f"    url = {url}\n" in (project / ".dvc/config").read_text()
        assert f'"{extras[choice]}>=' in (project / "pyproject.toml").read_text()


def test_ci_exists_only_if_chosen(bakes: Bakes) -> None:
    assert (bakes["default"] / ".github/workflows/ci.yml").is_file()
    assert not (bakes["ci=none"] / ".github").exists()


def test_no_option_changes_python(bakes: Bakes) -> None:
    """So types, import order and tests, run on the default bake, hold for every bake."""

    def code(project: Path) -> dict[str, str]:
        return {str(p.relative_to(project)): t for p, t in texts(project) if p.suffix == ".py"}

    for name, project in bakes.items():
        assert code(project) == code(bakes["default"]), name


def test_package_has_no_template_syntax() -> None:
    source = REPOSITORY / "<<cookiecutter.project_slug>>" / "src"
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"<<|<%|<#|cookiecutter", text), path


@pytest.mark.slow
@pytest.mark.parametrize("remote", read_questions()["data_remote"][1:])
def test_dependencies_of_each_remote_resolve(bake: Bake, remote: str) -> None:
    project = bake(data_remote=remote)
    done = subprocess.run(["uv", "lock"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
