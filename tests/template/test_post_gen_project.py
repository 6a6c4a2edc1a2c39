"""The hook completes and commits a new project, in any kind of folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import post_gen_project as hook
from conftest import Bake, read_questions

ANSWERS = {"license": "MIT", "ci": "github", "project_name": "P", "_template": "gh:a/b"}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_prune_covers_every_choice_of_its_options() -> None:
    for option, choices in hook.PRUNE.items():
        assert list(choices) == read_questions()[option]


def test_prune_removes_only_unused_files(tmp_path: Path) -> None:
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / ".github" / "workflows" / "ci.yml").write_text("on: push\n")
    for choice in read_questions()["license"]:
        (tmp_path / f"LICENSE.{choice}").write_text(choice)
    hook.prune(tmp_path, {"license": "MIT", "ci": "none"})
    hook.name_license(tmp_path, "MIT")
    assert [path.name for path in tmp_path.iterdir()] == ["LICENSE"]
    assert (tmp_path / "LICENSE").read_text() == "MIT"


@pytest.mark.parametrize(
    ("template", "kept"),
    [
        ("https://example.com/flywheel.git", True),
        ("git@example.com:team/flywheel.git", True),
        ("gh:team/flywheel", True),
        ("../flywheel", False),
        ("/home/ada/flywheel", False),
    ],
)
def test_answers_file_has_no_path_of_this_machine(
    tmp_path: Path, template: str, kept: bool
) -> None:
    private = {"_output_dir": "/home/ada", "_repo_dir": "/home/ada/x", "__derived": "y"}
    hook.store_answers(tmp_path, {**ANSWERS, **private, "_template": template, "_checkout": "v1"})
    stored = json.loads((tmp_path / ".cookiecutter.json").read_text())
    expected = {key: value for key, value in ANSWERS.items() if not key.startswith("_")}
    if kept:
        expected |= {"_template": template, "_checkout": "v1"}
    assert stored == expected


def test_first_commit_uses_the_git_identity_of_the_user(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[user]\n name = Grace\n email = grace@example.com\n"
        "[init]\n defaultBranch = trunk\n[commit]\n gpgSign = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    project = bake()
    assert git(project, "log", "--format=%an <%ae>") == "Grace <grace@example.com>"
    assert git(project, "branch", "--show-current") == "trunk"


def test_first_commit_ignores_the_environment_of_git_hooks(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / ".git" / "index"))
    project = bake()
    monkeypatch.undo()
    assert git(project, "log", "--format=%s") == "Start from the Flywheel template"
    assert not (tmp_path / ".git" / "index").exists()


def test_project_inside_a_repository_is_not_committed(
    bake: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "init", "--quiet")
    project = bake(tmp_path)
    assert not (project / ".git").exists()
    said = capfd.readouterr().out
    assert f"part of the git repository {tmp_path}" in said
    assert "commit it there" in said


def test_project_in_an_ignored_folder_gets_its_own_repository(bake: Bake, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/build/\n")
    project = bake(tmp_path / "build")
    assert git(project, "rev-parse", "--show-toplevel") == str(project)
    assert git(project, "rev-list", "--count", "HEAD") == "1"


def test_second_bake_over_a_project_commits_nothing(
    template: Path, settings_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input"]
    command += ["--config-file", str(settings_file), "--output-dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    project = tmp_path / "flight-delays"
    mine = project / "notes.md"
    mine.write_text("mine\n")
    again = [*command, "--overwrite-if-exists"]
    done = subprocess.run(again, check=True, capture_output=True, text=True)
    assert "already a git repository" in done.stdout
    assert mine.read_text() == "mine\n"
    assert git(project, "status", "--porcelain") == "?? notes.md"


def test_bake_without_git_is_complete_and_says_so(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    project = bake()
    assert (project / "LICENSE").is_file()
    assert not (project / ".git").exists()
    assert "git is not installed" in capfd.readouterr().out


def test_failing_git_keeps_the_project_and_reports_the_reason(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "git"
    broken.write_text("#!/bin/sh\necho 'fatal: the disk is on fire' >&2\nexit 128\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    project = bake()
    assert (project / "LICENSE").is_file()
    assert "fatal: the disk is on fire" in capfd.readouterr().out


def test_hook_prints_the_next_two_commands(
    bake: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "with space"
    output.mkdir()
    project = bake(output)
    assert capfd.readouterr().out.endswith(f"Next:\n  cd '{project}'\n  make run\n")
