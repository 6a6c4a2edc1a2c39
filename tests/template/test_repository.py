"""The template's own repository: what it must not hold, and its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from checkout import PROJECT, REPOSITORY, tracked_files

MACHINE = re.compile(
    r"/home/(?!ada\b)\w+|/Users/\w+|/root\b|(?<![\w.])/work/|(?<![\w.])/tmp/|file://\w"
    r"|pypi\.org/simple|files\.pythonhosted|index-url|extra-index|proxy\.golang|registry\.npmjs"
)
SELF = Path("tests/template/test_repository.py")


def test_no_machine_path_or_package_index_is_named() -> None:
    found = []
    for path in tracked_files():
        content = (REPOSITORY / path).read_bytes()
        if path == SELF or b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            if MACHINE.search(line):
                found.append(f"{path}:{number}: {line.strip()}")
    assert found == []


def test_no_placeholder_remains() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|NotImplemented\w*|lorem ipsum)\b", re.IGNORECASE)
    found = [
        str(path)
        for path in tracked_files()
        if path != SELF
        and path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".json"}
        and unfinished.search((REPOSITORY / path).read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_lock_or_output_is_tracked() -> None:
    made = {"uv.lock", "build", ".venv", ".uv", "__pycache__", ".DS_Store"}
    assert [path for path in tracked_files() if made & set(path.parts)] == []


def test_links_of_the_pages_resolve() -> None:
    broken = []
    for path in tracked_files():
        if path.suffix != ".md" or path.parts[0].startswith("<<"):
            continue
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)", text)
        for link in links:
            local = not re.match(r"[a-z]+:", link)
            if local and not (REPOSITORY / path.parent / link).exists():
                broken.append(f"{path}: {link}")
    assert broken == []


def test_both_pictures_of_the_replay_are_the_same() -> None:
    pictures = [folder / "docs/replay.svg" for folder in (REPOSITORY, PROJECT)]
    assert len({picture.read_bytes() for picture in pictures}) == 1


def test_practices_name_tests_and_modules_that_exist() -> None:
    page = (REPOSITORY / "docs" / "best-practices.md").read_text(encoding="utf-8")
    library = PROJECT / "src" / "flywheel_ml"
    named = re.findall(r"`([\w<>./-]+\.py)`", page)
    assert len(named) > 100
    tests = {path.name for path in tracked_files() if path.name.startswith("test_")}
    folders = [
        REPOSITORY,
        library,
        PROJECT,
        *(path for path in library.rglob("*") if path.is_dir()),
    ]
    lost = [
        name
        for name in named
        if name not in tests
        and not any((folder / name).is_file() for folder in folders)
        and name not in {"source.py", "features.py", "params.py"}
    ]
    assert lost == []


def test_help_lists_every_command_once() -> None:
    listed = make("help").stdout
    names = re.findall(r"^ *make ([a-z-]+) ", listed, flags=re.MULTILINE)
    declared = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert declared
    assert sorted(names) == sorted(declared[1].split())


def test_workflows_pin_actions_and_minimal_permissions() -> None:
    files = [
        path
        for folder in (REPOSITORY, REPOSITORY / "<<cookiecutter.project_slug>>")
        for path in (folder / ".github" / "workflows").glob("*.yml")
    ]
    assert {path.name for path in files} == {"ci.yml", "release.yml"}
    for path in files:
        text = path.read_text(encoding="utf-8")
        used = re.findall(r"uses: (\S+)(.*)", text)
        assert used
        for action, comment in used:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("command", [["actionlint"], ["zizmor", "--offline", "--quiet"]])
def test_workflows_pass_their_linters(baked: Path, command: list[str]) -> None:
    program = Path(sys.executable).with_name(command[0])
    for folder in (REPOSITORY, baked):
        workflows = sorted((folder / ".github" / "workflows").glob("*.yml"))
        done = subprocess.run(
            [str(program), *command[1:], *map(str, workflows)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_library_tests_use_the_dependencies_of_a_project(baked: Path) -> None:
    """The groups of this repository list the same requirements as a generated pyproject.toml."""
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    theirs = tomllib.loads((baked / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = theirs["project"], theirs["dependency-groups"]
    listed = [project["dependencies"], *project["optional-dependencies"].values()]
    installed = {one for group in (*listed, groups["train"], groups["example"]) for one in group}
    assert set(ours["dependency-groups"]["library"]) == installed
    assert ours["tool"]["uv"]["exclude-newer"] == theirs["tool"]["uv"]["exclude-newer"]
    tools = {*ours["project"]["dependencies"], *ours["dependency-groups"]["library-tests"]}
    assert set(groups["dev"]) <= tools


def test_changelog_names_this_version() -> None:
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {document['project']['version']}" in changelog


@pytest.mark.slow
def test_make_works_without_uv_home_or_settings(template: Path, tmp_path: Path) -> None:
    """A folder with a space in its path, an empty home, and PATH alone in the environment."""
    clone = tmp_path / "a clone"
    shutil.copytree(template, clone)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "make", "git", "sed", "awk", "rm", "find", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").symlink_to(sys.base_prefix + "/bin/python3")
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": str(tools), "HOME": str(home)}
    if "UV_CACHE_DIR" in os.environ:
        environment["UV_CACHE_DIR"] = os.environ["UV_CACHE_DIR"]
    done = make("install", folder=clone, environment=environment)
    assert done.returncode == 0, done.stderr
    assert (clone / ".uv" / "bin" / "uv").is_file()
    assert make("check", folder=clone, environment=environment).returncode == 0
    assert make("clean", folder=clone, environment=environment).returncode == 0
    assert not (clone / ".uv").exists()


def test_demo_rejects_a_missing_table() -> None:
    command = [sys.executable, "tests/demo.py", "/nowhere.csv", "x"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.strip() == "✗ DATA: /nowhere.csv does not exist"


def test_old_python_is_rejected_in_one_line(template: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for name in ("sh", "make", "sed", "awk"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = make("uv", folder=template, environment={"PATH": str(tmp_path)})
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert said == [
        "Python 3.11 or newer is needed, and python3 is not: try make PYTHON=/path/to/python3.11"
    ]


def make(
    target: str, folder: Path = REPOSITORY, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
