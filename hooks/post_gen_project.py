"""Finish a new project: delete unused files, make the first commit, print the next steps.

Cookiecutter renders this file before it runs it, in the project's folder; see pre_gen_project.py
for how the answers are passed in.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

RENDERED = r"""<< cookiecutter | tojson >>"""

# {option: {choice: paths to remove}}
PRUNE = {
    "ci": {
        "github": [],
        "none": [".github"],
    },
    "license": {
        "MIT": ["LICENSE.Apache-2.0", "LICENSE.BSD-3-Clause", "LICENSE.Proprietary"],
        "Apache-2.0": ["LICENSE.MIT", "LICENSE.BSD-3-Clause", "LICENSE.Proprietary"],
        "BSD-3-Clause": ["LICENSE.MIT", "LICENSE.Apache-2.0", "LICENSE.Proprietary"],
        "Proprietary": ["LICENSE.MIT", "LICENSE.Apache-2.0", "LICENSE.BSD-3-Clause"],
    },
}

# battenberg updates a project by committing a newer bake to this branch and merging that.
UPDATER = "battenberg"
TEMPLATE_BRANCH = "template"


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    answers = json.loads(RENDERED)
    project = Path.cwd()
    prune(project, answers)
    name_license(project, answers["license"])
    store_answers(project, answers)
    print(first_commit(project, answers["author_name"], answers["author_email"]))
    print(f"Next:\n  cd {shlex.quote(str(project))}\n  make run")
    return 0


def prune(project: Path, answers: Mapping[str, str]) -> None:
    """Remove from `project` what the answers did not ask for."""
    for option, unwanted in PRUNE.items():
        for name in unwanted[answers[option]]:
            path = project / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def name_license(project: Path, license_id: str) -> None:
    (project / f"LICENSE.{license_id}").replace(project / "LICENSE")


def store_answers(project: Path, answers: Mapping[str, str | None]) -> None:
    """Write .cookiecutter.json, from which the project is updated, without this machine's paths.

    It omits derived values and template settings too, because an update computes them again.
    """
    content = {key: value for key, value in answers.items() if not key.startswith("_")}
    template = answers["_template"]
    if template and ":" in template:  # an address, not a folder
        content["_template"] = template
        content["_checkout"] = answers.get("_checkout")
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (project / ".cookiecutter.json").write_text(f"{text}\n", encoding="utf-8")


def first_commit(project: Path, author_name: str, author_email: str) -> str:
    """Make `project` a git repository with one commit, unless it must not be; say what was done."""
    if is_update():
        return f"{UPDATER} copies the files into your repository; no commit was made here."
    if not shutil.which("git"):
        return "git is not installed, so nothing was committed: install it, then run git init."
    if (project / ".git").exists():
        return "This folder is already a git repository: check git diff, then commit."
    outer = enclosing_repository(project)
    if outer:
        return f"This folder is part of the git repository {outer}: commit it there."
    try:
        git(project, "init", "--quiet")
        if not is_configured(project, "init.defaultBranch"):
            git(project, "symbolic-ref", "HEAD", "refs/heads/main")
        git(project, "add", "--all")
        who = identity(project, author_name, author_email)
        flags = ["--quiet", "--no-verify", "--no-gpg-sign"]
        git(project, *who, "commit", *flags, "--message", "Start from the Flywheel template")
        git(project, "branch", TEMPLATE_BRANCH)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return f"git could not make the first commit ({reason}): run git commit yourself."
    return "The project is a git repository with its first commit."


def enclosing_repository(project: Path) -> str | None:
    """Return the work tree that tracks this folder, or None if it ignores the folder."""
    outer = git(project, "rev-parse", "--show-toplevel", check=False)
    if outer.returncode != 0:
        return None
    ignored = git(project, "check-ignore", "--quiet", ".", check=False).returncode == 0
    return None if ignored else outer.stdout.strip()


def identity(project: Path, name: str, email: str) -> list[str]:
    """Return git options for what the user's configuration does not set."""
    options = []
    for key, value in {"user.name": name, "user.email": email}.items():
        if not is_configured(project, key):
            options += ["-c", f"{key}={value}"]
    return options


def is_configured(project: Path, key: str) -> bool:
    return git(project, "config", "--get", key, check=False).returncode == 0


def git(project: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git on `project` alone, even when a git hook's environment points elsewhere."""
    local = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"}
    return subprocess.run(
        ["git", *arguments],
        cwd=project,
        env={key: value for key, value in os.environ.items() if key not in local},
        check=check,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )


def is_update() -> bool:
    """Whether battenberg runs this bake: it moves the files into a repository of its own."""
    words = parent_command()[:3]
    return any(Path(word).name == UPDATER for word in words)


def parent_command() -> list[str]:
    process = Path(f"/proc/{os.getppid()}/cmdline")
    if process.exists():
        return process.read_text(errors="replace").split("\0")
    command = ["ps", "-o", "args=", "-p", str(os.getppid())]
    if not shutil.which("ps"):
        return []
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


if __name__ == "__main__":
    sys.exit(main())
