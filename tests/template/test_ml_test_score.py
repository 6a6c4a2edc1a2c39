"""The ML Test Score after `make run` and `make test`: of the example, then of adopted tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Bake
from processes import make, run

pytestmark = [pytest.mark.slow, pytest.mark.full]

INPUTS = Path(__file__).parent / "inputs"


@pytest.fixture(scope="module")
def project(bake: Bake) -> Path:
    project = bake()
    make(project, "install")
    return project


def score(project: Path) -> dict[str, float]:
    """Train, test and score a project; returns the sections."""
    make(project, "run")
    make(project, "test")
    printed = make(project, "ml-test-score")
    lines = [line for line in printed.splitlines() if line[:3].strip() in ("0", "0.5", "1")]
    assert len(lines) == 28, printed
    found = json.loads((project / "reports" / "ml-test-score.json").read_text(encoding="utf-8"))
    sections: dict[str, float] = found["sections"]
    return sections


def test_example_lacks_only_the_review(project: Path) -> None:
    assert score(project) == {"data": 7, "model": 6.5, "infrastructure": 7, "monitoring": 7}


@pytest.mark.parametrize(
    ("table", "target"), [("pressure.csv", "pressure_pa"), ("admissions.csv", "admitted")]
)
def test_adopted_table_scores_above_five(project: Path, table: str, target: str) -> None:
    make(project, "adopt", f"DATA={INPUTS / table}", f"TARGET={target}", "ARGS=--yes")
    run(project, "git", "add", "--all")
    run(project, "git", "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "Adopt")
    assert min(score(project).values()) > 5
