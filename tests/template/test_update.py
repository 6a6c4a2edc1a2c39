"""A project follows its template: its library is replaced, or battenberg merges every file.

The commands are those of docs/updating.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import REPOSITORY
from conftest import Bake

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


@pytest.fixture
def address(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a repository that holds the template, at tag v1, with a home of its own."""
    settings = tmp_path / ".gitconfig"
    settings.write_text("[user]\n name = Ada\n email = ada@example.com\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    released = tmp_path / "flywheel"
    shutil.copytree(template, released)
    git(released, "init", "--quiet", "--initial-branch=main")
    git(released, "add", "--all")
    git(released, "commit", "--quiet", "--message", "One")
    git(released, "tag", "v1")
    return f"git+{released.as_uri()}"


def release_a_change(released: Path) -> None:
    changed = released / "<<cookiecutter.project_slug>>" / ".editorconfig"
    changed.write_text(changed.read_text() + "\n[*.sql]\nindent_size = 2\n")
    git(released, "commit", "--quiet", "--all", "--message", "Two")
    git(released, "tag", "v2")


def change_and_update(project: Path, released: Path) -> None:
    """Change the project as its user would, and see both changes after the update."""
    params = project / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    git(project, "commit", "--quiet", "--all", "--message", "Change params.yaml")
    release_a_change(released)
    battenberg(project, "upgrade", "--no-input", "--checkout", "v2")
    assert params.read_text().endswith("# mine\n")
    assert "[*.sql]" in (project / ".editorconfig").read_text()
    answers = json.loads((project / ".cookiecutter.json").read_text())
    assert answers["_checkout"] == "v2"
    assert answers["project_name"] == 'Anna\'s "Best" Model'
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.slow
def test_replaced_library_keeps_user_files(address: str, tmp_path: Path, bake: Bake) -> None:
    project = bake(tmp_path / "projects", project_name='Anna\'s "Best" Model')
    features = project / "src" / "anna_s_best_model" / "features.py"
    features.write_text(features.read_text() + "\n# mine\n")
    git(project, "commit", "--quiet", "--all", "--message", "Change a feature")
    before = git(project, "rev-parse", "HEAD:src/anna_s_best_model")

    released = tmp_path / "flywheel" / "<<cookiecutter.project_slug>>" / "src" / "flywheel_ml"
    (released / "newer.py").write_text('"""A module of the newer version."""\n')
    (released / "utils" / "formatting.py").unlink()
    git(tmp_path / "flywheel", "add", "--all")
    git(tmp_path / "flywheel", "commit", "--quiet", "--message", "Two")
    page = (REPOSITORY / "docs" / "updating.md").read_text(encoding="utf-8")
    commands = page.split("```sh\n")[1].split("```")[0].splitlines()
    cookiecutter = f"{sys.executable} -m cookiecutter"
    script = (
        "\n".join(commands[:3])
        .replace("ADDRESS", address)
        .replace("uvx cookiecutter", cookiecutter)
    )
    subprocess.run(["bash", "-euc", script], cwd=project, check=True, capture_output=True)

    changed = git(project, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert sorted(line.split()[1] for line in changed) == [
        "src/flywheel_ml/newer.py",
        "src/flywheel_ml/utils/formatting.py",
    ]
    assert git(project, "rev-parse", "HEAD:src/anna_s_best_model") == before


def test_update_keeps_user_changes(address: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "--checkout", "v1"]
    command += ["--output-dir", str(tmp_path), address, 'project_name=Anna\'s "Best" Model']
    subprocess.run(command, check=True, capture_output=True)
    project = tmp_path / "anna-s-best-model"
    assert json.loads((project / ".cookiecutter.json").read_text())["_template"] == address
    change_and_update(project, tmp_path / "flywheel")


def test_existing_repository_adopts_the_template_and_updates(address: str, tmp_path: Path) -> None:
    project = tmp_path / "older"
    project.mkdir()
    git(project, "init", "--quiet", "--initial-branch=main")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "Start")
    defaults = tmp_path / ".cookiecutterrc"
    defaults.write_text('default_context:\n  project_name: Anna\'s "Best" Model\n')
    battenberg(project, "install", "--no-input", "--checkout", "v1", address)
    assert (project / "LICENSE").is_file()
    change_and_update(project, tmp_path / "flywheel")
