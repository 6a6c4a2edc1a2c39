"""Invalid answers are rejected: one line, exit status 1, nothing on disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pre_gen_project as hook
from conftest import read_questions

GOOD = {
    "project_name": "Flight Delays",
    "description": "Will it be late?",
    "author_name": "Ada",
    "author_email": "ada@example.com",
    "project_slug": "flight-delays",
    "package_name": "flight_delays",
}

# (question, answer, words of the problem)
REJECTED = [
    ("project_name", "", "is empty"),
    ("project_name", " ", "begins or ends with a space"),
    ("project_name", "two\nlines", "U+000A"),
    ("project_name", "tab\there", "U+0009"),
    ("description", "", "is empty"),
    ("description", "bell\a", "U+0007"),
    ("description", "line\u2028separator", "U+2028"),
    ("description", "reversed\u202etext", "U+202E"),
    ("author_name", "Ada ", "begins or ends with a space"),
    ("author_name", "escape\x1b[31m", "U+001B"),
    ("author_email", "nobody", "is not an email address"),
    ("author_email", "a b@example.com", "is not an email address"),
    ("author_email", "a@b", "is not an email address"),
    ("author_email", "Ada <ada@example.com>", "is not an email address"),
    ("project_slug", "", "is not a valid folder and distribution name"),
    ("project_slug", ".", "is not a valid folder and distribution name"),
    ("project_slug", "..", "is not a valid folder and distribution name"),
    ("project_slug", "a/b", "is not a valid folder and distribution name"),
    ("project_slug", "../outside", "is not a valid folder and distribution name"),
    ("project_slug", "a\\b", "is not a valid folder and distribution name"),
    ("project_slug", "has space", "is not a valid folder and distribution name"),
    ("project_slug", "Upper", "is not a valid folder and distribution name"),
    ("project_slug", "été", "is not a valid folder and distribution name"),
    ("project_slug", "two--hyphens", "is not a valid folder and distribution name"),
    ("project_slug", "-leading", "is not a valid folder and distribution name"),
    ("project_slug", "trailing-", "is not a valid folder and distribution name"),
    ("project_slug", "two\nlines", "is not a valid folder and distribution name"),
    ("project_slug", "x" * 61, "61 characters long"),
    ("project_slug", "x" * 300, "300 characters long"),
    ("project_slug", "con", "device name on Windows"),
    ("project_slug", "lpt1", "device name on Windows"),
    ("project_slug", "mlflow", "library that the project installs"),
    ("project_slug", "scikit-learn", "library that the project installs"),
    ("package_name", "", "is not a valid package name"),
    ("package_name", "2fast", "is not a valid package name"),
    ("package_name", "with-hyphen", "is not a valid package name"),
    ("package_name", "with.dot", "is not a valid package name"),
    ("package_name", "__double", "is not a valid package name"),
    ("package_name", "été", "is not a valid package name"),
    ("package_name", "class", "is a Python keyword"),
    ("package_name", "match", "is a Python keyword"),
    ("package_name", "json", "hide the Python module"),
    ("package_name", "test", "hide the Python module"),
    ("package_name", "mlflow", "library that the project installs"),
    ("package_name", "sklearn", "library that the project installs"),
    ("package_name", "yaml", "library that the project installs"),
    ("package_name", "tests", "name of a folder in the project"),
    ("package_name", "src", "name of a folder in the project"),
    ("package_name", "nul", "device name on Windows"),
]


@pytest.mark.parametrize(("question", "answer", "words"), REJECTED)
def test_problem_is_one_line_with_question_and_value(
    question: str, answer: str, words: str
) -> None:
    (problem, *_) = hook.find_problems({**GOOD, question: answer})
    assert problem.startswith(f"{question} {answer[:60]!r}")
    assert words in problem
    assert "\n" not in problem
    assert problem.endswith(".")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("project_name", 'Größe "x" \\ {{ y }} 🚀'),
        ("description", "Family: 👩\u200d👩\u200d👧"),
        ("author_email", "first.last+tag@sub.example.co.uk"),
        ("project_slug", "2048"),
        ("project_slug", "under_score"),
        ("package_name", "a"),
        ("package_name", "flights_2013"),
    ],
)
def test_valid_answers_are_accepted(question: str, answer: str) -> None:
    assert list(hook.find_problems({**GOOD, question: answer})) == []


@pytest.mark.parametrize("mark", hook.DELIMITERS)
def test_template_delimiters_are_rejected_in_free_text(mark: str) -> None:
    """They would break the update that reads the answers back."""
    (problem,) = hook.find_problems({**GOOD, "description": f"a {mark} b"})
    assert mark in problem


def bake_rejected(
    template: Path, settings_file: Path, output: Path, question: str, answer: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input"]
    command += ["--config-file", str(settings_file), "--output-dir", str(output)]
    command.append(f"{question}={answer}")
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("project_name", "two\nlines"),
        ("description", ""),
        ("author_email", "nobody"),
        ("project_slug", ""),
        ("project_slug", ".."),
        ("project_slug", "a/b"),
        ("project_slug", "../outside"),
        ("project_slug", "x" * 300),
        ("project_slug", "con"),
        ("package_name", "a/b"),
        ("package_name", "json"),
        ("package_name", "mlflow"),
    ],
)
def test_rejected_bake_leaves_nothing_on_disk(
    template: Path, settings_file: Path, tmp_path: Path, question: str, answer: str
) -> None:
    output = tmp_path / "inside" / "output"
    output.mkdir(parents=True)
    done = bake_rejected(template, settings_file, output, question, answer)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("Rejected: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"Rejected: {question} {answer[:60]!r}")
    assert [*tmp_path.rglob("*")] == [output.parent, output]


def test_answer_with_template_syntax_leaves_nothing_on_disk(
    template: Path, settings_file: Path, tmp_path: Path
) -> None:
    done = bake_rejected(template, settings_file, tmp_path, "description", "a << b")
    assert done.returncode != 0
    assert [*tmp_path.iterdir()] == []


def test_every_question_has_a_prompt(template: Path, settings_file: Path, tmp_path: Path) -> None:
    """The hook rejects template syntax that a user types, because it is not rendered."""
    command = [sys.executable, "-m", "cookiecutter", str(template)]
    command += ["--config-file", str(settings_file), "--output-dir", str(tmp_path)]
    typed = "\n".join(["Typed", "a << b", *[""] * 7]) + "\n"
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=False)
    said = " ".join(done.stdout.split())
    prompts = json.loads((template / "cookiecutter.json").read_text())["__prompts__"]
    assert list(prompts) == list(read_questions())
    for prompt in prompts.values():
        words = [prompt] if isinstance(prompt, str) else list(prompt.values())
        assert [line for line in words if line not in said] == []
    assert done.returncode == 1
    assert "Rejected: description 'a << b' contains <<" in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_rejected_bake_never_touches_existing_files(
    template: Path, settings_file: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep")
    for answer in ("", ".", "/", str(tmp_path)):
        assert bake_rejected(template, settings_file, tmp_path, "project_slug", answer).returncode
    assert [*tmp_path.iterdir()] == [precious]


def test_every_direct_dependency_is_a_reserved_name(baked: Path) -> None:
    text = (baked / "pyproject.toml").read_text(encoding="utf-8")
    for name in direct_dependencies(text):
        assert name in hook.TAKEN, name


def direct_dependencies(pyproject: str) -> set[str]:
    document = tomllib.loads(pyproject)
    groups = document.get("dependency-groups", {}).values()
    extras = document["project"].get("optional-dependencies", {}).values()
    needed = [document["project"]["dependencies"], *groups, *extras]
    names = [item for group in needed for item in group if isinstance(item, str)]
    return {
        re.sub(r"[-_.]+", "_", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower() for name in names
    }
