"""A project follows its template: battenberg merges what changed on both sides."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IDENTITY = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *IDENTITY, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def battenberg(folder: Path, *arguments: str) -> None:
    program = Path(sys.executable).with_name("battenberg")
    command = [str(program), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_update_keeps_the_users_changes_and_brings_the_templates(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text("[user]\n name = Ada\n email = ada@example.com\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    (tmp_path / ".gitconfig").write_text(settings.read_text())

    released = tmp_path / "flywheel"
    shutil.copytree(template, released)
    git(released, "init", "--quiet", "--initial-branch=main")
    git(released, "add", "--all")
    git(released, "commit", "--quiet", "--message", "One")
    git(released, "tag", "v1")

    project = tmp_path / "project"
    project.mkdir()
    git(project, "init", "--quiet", "--initial-branch=main")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "Start")
    url = f"git+{released.as_uri()}"
    battenberg(project, "install", "--no-input", "--checkout", "v1", url)
    answers = json.loads((project / ".cookiecutter.json").read_text())
    assert answers["_template"] == url
    assert (project / "LICENSE").is_file()

    params = project / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    git(project, "commit", "--quiet", "--all", "--message", "Change params.yaml")

    ours = released / "<<cookiecutter.project_slug>>" / ".editorconfig"
    ours.write_text(ours.read_text() + "\n[*.sql]\nindent_size = 2\n")
    git(released, "commit", "--quiet", "--all", "--message", "Two")
    git(released, "tag", "v2")

    battenberg(project, "upgrade", "--no-input", "--checkout", "v2")
    assert params.read_text().endswith("# mine\n")
    assert "[*.sql]" in (project / ".editorconfig").read_text()
    assert git(project, "status", "--porcelain") == ""
