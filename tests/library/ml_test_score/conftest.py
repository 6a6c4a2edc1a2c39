"""A trained project with all evidence, in a folder of its own for each test that takes it away."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.versioning import dvc_stages
from flywheel_ml.ml_test_score import attacks
from flywheel_ml.ml_test_score.attacks import TestResult
from flywheel_ml.ml_test_score.facts import Facts, collect
from flywheel_ml.ml_test_score.score import CHECKS, Scorecard, evaluate
from library.helpers import project

REVIEW = "Train\n\nReviewed-by: Another Person <other@example.invalid>\n"
FIGURES: dict[str, str | float] = {
    "features": "plane_age",
    "estimator hist_gradient_boosting": 0.0,
    "correlation": 0.9,
    "rollback_seconds": 0.5,
}


class ScoredProject(NamedTuple):
    """A project and the stages that DVC would run again, which take a second to find out."""

    path: Path
    outdated: dict[str, str]

    def collect(self) -> Facts:
        """Collect the facts about the current folder, a copy of this project."""
        return collect(project.PROJECT, Settings(_env_file=None), outdated=self.outdated)

    def score(self) -> Scorecard:
        """Compute the score of the current folder."""
        return evaluate(self.collect())


def list_attacks() -> list[str]:
    """List the attacks that the checks ask for."""
    names = [one.name for check in CHECKS for one in check.evidence]
    return [name.removeprefix("attack: ") for name in names if name.startswith("attack: ")]


def pass_attacks(root: Path) -> None:
    """Record that every attack passed on the code in `root`, each by one test."""
    code, now = attacks.hash_code(root), datetime.now(UTC)
    results = {
        f"tests/test_{name}": TestResult(
            attacks=(name,), outcome="passed", at=now, seconds=0.1, code=code, properties=FIGURES
        )
        for name in list_attacks()
    }
    attacks.write_results(root, results)


@pytest.fixture(scope="module")
def scored_project(trained_project: project.PipelineRuns, tmp_path_factory: pytest.TempPathFactory) -> ScoredProject:
    """A trained project, committed with a review, whose attacks all passed."""
    path = project.copy(trained_project.path, tmp_path_factory.mktemp("scored") / "project")
    (path / "uv.lock").touch()
    (path / "params.yaml").write_text((path / "params.yaml").read_text() + "\n")
    project.commit(path, REVIEW)
    pass_attacks(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for name, value in project.environment(path.parent).items():
            patch.setenv(name, value)
        outdated = dvc_stages.list_outdated()
    return ScoredProject(path, outdated)


@pytest.fixture
def scored(scored_project: ScoredProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoredProject:
    """A copy of that project, as the current folder."""
    path = shutil.copytree(scored_project.path, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(path)
    for name, value in project.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return scored_project._replace(path=path)


@pytest.fixture
def lost_points(scored: ScoredProject) -> Callable[[], list[str]]:
    """A function that lists the checks without a full point, after a fault was injected into the current folder."""

    def call() -> list[str]:
        return [check.id for check in scored.score().checks if check.points < 1]

    return call
