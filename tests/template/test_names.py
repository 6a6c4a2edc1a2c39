"""Names as people write them survive into every format, and read back as they were given."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from markdown_it import MarkdownIt

from conftest import Bake

NAMES = {
    "double quotes": 'The "Best" Model',
    "single quotes": "Anna's Model",
    "triple quotes": "a \"\"\" b ''' c",
    "accents": "Prévision d'Été à Zürich",
    "other scripts": "航空便の遅延 – задержки",
    "ampersand and hash": "R&D #1 & more &amp; #end #",
    "braces": "{{ cookiecutter }} {% raw %} ${{ secrets.X }} {0}",
    "backslashes": "C:\\new\\table \\n \\u0041 \\",
    "emoji": "Forecast 🚀👩🏽\u200d🔬",
    "angle brackets": "<b>bold</b> a < b > c <!-- x -->",
    "pipes and percent": "a | b || 100% %s %(x)s",
    "dollar and backtick": "$HOME ${HOME} $(id) `id`",
    "markdown": "_a_ *b* **c** [d](e) ![f](g) ~h~ 1. x",
    "yaml": "yes: no, - [a, *b, &c] !tag @d ? |",
    "leading number": "1. First",
    "leading dash": "- item + other = third",
    "equals": "= heading",
    "long": "word " * 60 + "end",
}


@pytest.fixture(scope="module", params=list(NAMES.values()), ids=list(NAMES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def project(bake: Bake, name: str) -> Path:
    return bake(
        project_name=f"Model {name}",
        description=name,
        author_name=name,
        project_slug="hostile",
        package_name="hostile_project",
    )


def test_names_survive_toml(project: Path, name: str) -> None:
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["description"] == name
    assert metadata["authors"][0]["name"] == name


def test_names_survive_the_answers_file(project: Path, name: str) -> None:
    answers = json.loads((project / ".cookiecutter.json").read_text(encoding="utf-8"))
    assert answers["project_name"] == f"Model {name}"
    assert answers["description"] == answers["author_name"] == name


def test_names_keep_every_file_valid(project: Path) -> None:
    for path in project.rglob("*"):
        if not path.is_file() or ".git" in path.parts:
            continue
        if path.suffix == ".py":
            ast.parse(path.read_text(encoding="utf-8"))
        elif path.suffix in {".yaml", ".yml"}:
            list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        elif path.suffix in {".json", ".ipynb"}:
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
    configparser.RawConfigParser().read(project / ".dvc" / "config")


def test_readme_shows_the_names(project: Path, name: str) -> None:
    shown = [plain(token) for token in MarkdownIt().parse((project / "README.md").read_text())]
    assert shown[1] == f"Model {name}"
    assert name in shown


def test_license_names_the_author(project: Path, name: str) -> None:
    assert f"Copyright (c) {name}" in (project / "LICENSE").read_text(encoding="utf-8")


def test_git_names_the_author(project: Path, name: str) -> None:
    command = ["git", "log", "--format=%an"]
    done = subprocess.run(command, cwd=project, capture_output=True, check=True)
    # git leaves out angle brackets and punctuation at either end, whoever sets the name.
    bare = str.maketrans("", "", "<>")
    recorded = done.stdout.decode("utf-8").strip()
    assert recorded
    assert recorded in name.translate(bare)


def test_quoted_form_is_valid_toml_yaml_json_and_python(name: str, template: Path) -> None:
    context = generate_context(
        str(template / "cookiecutter.json"), extra_context={"description": name}
    )
    quoted = prompt_for_config(context, no_input=True)["__description_quoted"]
    assert tomllib.loads(f"x = {quoted}")["x"] == name
    assert yaml.safe_load(f"x: {quoted}")["x"] == name
    assert json.loads(quoted) == name
    assert ast.literal_eval(quoted) == name


def test_markdown_form_shows_the_name_unchanged(name: str, template: Path) -> None:
    context = generate_context(
        str(template / "cookiecutter.json"), extra_context={"description": name}
    )
    written = prompt_for_config(context, no_input=True)["__description_markdown"]
    shown = [plain(token) for token in MarkdownIt().parse(f"# {written}\n\n{written}\n")]
    assert shown == ["", name, "", "", name, ""]


def test_renamed_project_has_no_name_of_the_example(bake: Bake) -> None:
    project = bake(project_name="Churn", project_slug="churn", package_name="customers")
    assert (project / "src" / "customers").is_dir()
    left = [
        str(path.relative_to(project))
        for path in project.rglob("*")
        if path.is_file()
        and ".git" not in path.relative_to(project).parts
        and re.search(rb"flight[-_ ]delays", path.read_bytes(), re.IGNORECASE)
    ]
    assert left == []


@pytest.mark.parametrize(
    ("project_name", "slug", "package"),
    [
        ("Flight Delays", "flight-delays", "flight_delays"),
        ("Prévision d'Été", "prevision-d-ete", "prevision_d_ete"),
        ("R & D -- two__words", "r-d-two-words", "r_d_two_words"),
        ("2048 Numbers", "2048-numbers", "project_2048_numbers"),
        ("  Größe/Straße  ", "grosse-strasse", "grosse_strasse"),
    ],
)
def test_folder_and_package_names_follow_the_project_name(
    template: Path, project_name: str, slug: str, package: str
) -> None:
    context = generate_context(
        str(template / "cookiecutter.json"), extra_context={"project_name": project_name}
    )
    answers = prompt_for_config(context, no_input=True)
    assert (answers["project_slug"], answers["package_name"]) == (slug, package)


def test_long_project_name_gives_a_short_folder_name(template: Path) -> None:
    context = generate_context(
        str(template / "cookiecutter.json"), extra_context={"project_name": "word " * 60}
    )
    slug = prompt_for_config(context, no_input=True)["project_slug"]
    assert len(slug) <= 50
    assert not slug.endswith("-")


def plain(token: object) -> str:
    """Return the text that a reader of a rendered Markdown token sees."""
    children = getattr(token, "children", None) or []
    return "".join(child.content for child in children)
