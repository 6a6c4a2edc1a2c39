"""What git says about reviews and manual tests: an author's own name is no review, an ignored file is not committed."""

from datetime import date
from pathlib import Path

import pytest

from flywheel_ml.flows.versioning import git
from flywheel_ml.ml_test_score import manual
from flywheel_ml.ml_test_score.manual import ManualTest
from library.helpers import project

TODAY = date(2026, 11, 29)
MANUAL = ManualTest(test="model.staleness", at=TODAY, by="A. Person", result="measured by hand")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, as the current folder."""
    monkeypatch.chdir(tmp_path)
    project.git(tmp_path, "init", "--quiet")
    return tmp_path


@pytest.mark.parametrize(
    ("trailer", "counts"),
    [
        ("Bob <bob@example.org>", True),
        ("Ann <ann.other@example.org>", False),
        ("Bob <Ann@Example.org>", False),
        ("ANN AUTHOR <bob@example.org>", False),
        ("Ann Author", False),
        ("Bob", False),
        ("x", False),
        ("Bob <bob>", False),
        ("<bob@example.org>", False),
    ],
)
def test_review_needs_name_and_address_of_another_person(repository: Path, trailer: str, counts: bool) -> None:
    author = "Ann <ann@example.org>" if trailer.startswith("Ann <") else "Ann Author <ann@example.org>"
    (repository / "params.yaml").write_text("a: 1\n")
    project.git(repository, "add", "--all")
    project.git(repository, "commit", "--quiet", "--author", author, "--message", f"Train\n\nReviewed-by: {trailer}")
    found = git.find_last_change("params.yaml")
    assert found is not None
    assert found.reviewers == ((trailer,) if counts else ())


def test_manual_test_that_git_ignores_is_not_committed(repository: Path) -> None:
    manual.FILE.write_text("- {}\n")
    (repository / ".gitignore").write_text("manual_tests.yaml\n")
    assert MANUAL.find_problem(TODAY) == "manual_tests.yaml is not committed"
    project.commit(repository, "Ignore")
    assert MANUAL.find_problem(TODAY) == "manual_tests.yaml is not committed"
    project.git(repository, "add", "--force", "manual_tests.yaml")
    project.git(repository, "commit", "--quiet", "--message", "Document")
    assert MANUAL.find_problem(TODAY) == ""


def test_manual_test_without_a_repository_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    manual.FILE.write_text("- {}\n")
    assert MANUAL.find_problem(TODAY) == "manual_tests.yaml is not committed"
