"""28 checks with all evidence give 7 points in each section; each piece that is taken away costs its section."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_ml.core import paths
from flywheel_ml.flows import schema_changes
from flywheel_ml.ml_test_score import attacks, manual, report
from flywheel_ml.ml_test_score.evidence import SECTIONS
from flywheel_ml.ml_test_score.facts import Facts
from flywheel_ml.ml_test_score.score import CHECKS, evaluate
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import read_json, write_json
from library.helpers import project
from library.ml_test_score.conftest import ScoredProject, list_attacks

ARTIFACTS = {
    "reports/validation.json": "data.schema",
    "reports/ablation.json": "data.beneficial",
    "var/measured.json": "data.cost",
    "bundle/contract.yaml": "data.requirements",
    "reports/privacy.json": "data.privacy",
    "reports/evaluation.json": "model.staleness",
    "bundle/manifest.json": "model.simpler",
    "dvc.lock": "infrastructure.reproducible",
    "uv.lock": "infrastructure.reproducible",
    "var/serving/routing.json": "infrastructure.validated",
    "bundle/background.json": "infrastructure.debuggable",
    "reports/upstream_schema.json": "monitoring.dependencies",
    "reports/ingest.json": "monitoring.dependencies",
    "compute_baseline.json": "monitoring.compute",
}
"""Artifact → a check that needs it."""


@pytest.fixture(scope="module")
def facts(scored_project: ScoredProject) -> Facts:
    """The facts about the project with all evidence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scored_project.path)
        return scored_project.collect()


def test_there_are_seven_checks_in_each_section() -> None:
    assert [check.section for check in CHECKS] == [section for section in SECTIONS for _ in range(7)]
    assert len({check.id for check in CHECKS}) == 28


def test_all_evidence_gives_all_points(facts: Facts) -> None:
    card = evaluate(facts)
    assert {one.id: one.hint for one in card.checks if one.points < 1} == {}
    assert card.sections == dict.fromkeys(SECTIONS, 7.0)
    assert card.score == 7
    assert all(one.evidence for one in card.checks)


def test_every_check_can_lose_its_point_by_one_piece() -> None:
    """The mutations below take every kind of evidence away."""
    by_attack = {check.id for check in CHECKS if any(one.name.startswith("attack: ") for one in check.evidence)}
    others = {"data.beneficial", "model.reviewed", "model.tuned", "model.staleness", "monitoring.staleness"}
    assert by_attack | others == {check.id for check in CHECKS}


@pytest.mark.parametrize("outcome", ["missing", "failed", "old", "other code"])
@pytest.mark.parametrize("name", list_attacks())
def test_missing_attack_costs_its_section(facts: Facts, name: str, outcome: str) -> None:
    tests = dict(facts.tests)
    (key,) = [key for key, one in tests.items() if name in one.attacks]
    found = tests.pop(key)
    if outcome != "missing":
        old = facts.now - timedelta(days=40)
        changes: dict[str, dict[str, Any]] = {
            "failed": {"outcome": "failed"},
            "old": {"at": old},
            "other code": {"code": "0"},
        }
        tests[key] = found.model_copy(update=changes[outcome])
    card = evaluate(facts._replace(tests=tests))
    lost = [one for one in card.checks if one.points < 1]
    owners = [check.id for check in CHECKS if f"attack: {name}" in [one.name for one in check.evidence]]
    assert [one.id for one in lost] == owners
    assert lost[0].hint.endswith("`make test`")
    assert card.sections[owners[0].partition(".")[0]] == 6
    assert card.score == 6


@pytest.mark.parametrize(("artifact", "check"), ARTIFACTS.items())
def test_missing_artifact_costs_its_section(scored: ScoredProject, artifact: str, check: str) -> None:
    (scored.path / artifact).unlink()
    card = scored.score()
    assert check in {one.id for one in card.checks if one.points < 1}
    assert card.sections[check.partition(".")[0]] < 7


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"ok": true}', '{"columns": {}}'])
@pytest.mark.parametrize("name", [name for name in ARTIFACTS if name.endswith(".json") and "reports" in name])
def test_file_that_only_exists_is_no_evidence(facts: Facts, name: str, content: str) -> None:
    """Its content must be what a stage writes, about the present contract."""
    reports = dict(facts.pipeline.reports)
    known = reports.pop(name)
    if content:
        reports[name] = known._replace(content=json.loads(content))
    card = evaluate(facts._replace(pipeline=facts.pipeline._replace(reports=reports)))
    assert ARTIFACTS[name] in {one.id for one in card.checks if one.points < 1}


@pytest.mark.parametrize(
    ("stage", "check"), [("validate", "data.schema"), ("evaluate", "data.beneficial"), ("evaluate", "model.staleness")]
)
def test_report_of_an_outdated_stage_is_no_evidence(facts: Facts, stage: str, check: str) -> None:
    outdated = {stage: "deps: contract.yaml modified"}
    card = evaluate(facts._replace(pipeline=facts.pipeline._replace(outdated=outdated)))
    lost = {one.id: one.hint for one in card.checks if one.points < 1}
    assert lost[check].startswith(f"stage {stage} is out of date: deps: contract.yaml modified: `make run`")
    assert "infrastructure.reproducible" in lost


def test_dvc_names_the_stage_whose_report_was_edited(scored: ScoredProject) -> None:
    from flywheel_ml.flows.versioning import dvc_stages

    content = read_json(paths.REPORTS / "privacy.json")
    write_json(paths.REPORTS / "privacy.json", {**content, "undeclared": []})
    assert dvc_stages.list_outdated() == scored.outdated == {}
    write_json(paths.REPORTS / "privacy.json", {**content, "rows": 1})
    assert dvc_stages.list_outdated() == {"validate": "outs: reports/privacy.json modified"}


def test_change_of_code_makes_all_attacks_stale(scored: ScoredProject) -> None:
    path = project.PROJECT.folder / "features.py"
    path.write_text(path.read_text() + "\n")
    found = scored.collect()
    problems = {found.judge_attack(name).problem for name in list_attacks()}
    assert problems == {"code, tests or configuration changed since the tests ran"}


def test_erasures_that_cannot_be_searched_cost_the_point(facts: Facts) -> None:
    card = evaluate(facts._replace(personal=facts.personal._replace(erased_problem="erased.json is damaged")))
    lost = {one.id: one.hint for one in card.checks if one.points < 1}
    assert lost.keys() == {"data.privacy"}
    assert lost["data.privacy"].startswith("erased.json is damaged: ")


@pytest.mark.parametrize("lacking", ["digest", "train_cpu_us", "peak_mb", "baseline"])
def test_compute_without_figures_of_this_training_costs_the_point(facts: Facts, lacking: str) -> None:
    model = facts.model
    assert model.measured is not None
    assert model.current is not None
    assert model.baseline is not None
    if lacking == "digest":
        # Nor does what else was measured of the other bundle count.
        changed = model._replace(measured=model.measured.model_copy(update={"digest": "0" * 64}))
    elif lacking == "baseline":
        changed = model._replace(baseline=model.baseline.model_copy(update={"train_cpu_us": None}))
    else:
        changed = model._replace(current=model.current.model_copy(update={lacking: None}))
    lost = {one.id: one.hint for one in evaluate(facts._replace(model=changed)).checks if one.points < 1}
    assert "was not measured" in lost["monitoring.compute"] or "is unknown" in lost["monitoring.compute"]
    assert len(lost) == 1 or lacking == "digest"


def test_version_that_a_gate_refused_and_a_person_promoted_costs_the_point(scored: ScoredProject) -> None:
    from mlflow import MlflowClient

    from flywheel_ml.core.settings import Settings
    from flywheel_ml.model.registration.registry import Registry

    settings = Settings(_env_file=None)
    registry = Registry.open(settings, "flights")
    MlflowClient().set_model_version_tag("flights", "1", "refused", "minimum score: ROC AUC 0.5, at least 0.6")
    MlflowClient().delete_registered_model_alias("flights", "champion")
    registry.promote("1", None, override="the floor is wrong")
    (lost,) = [one for one in scored.score().checks if one.points < 1]
    assert lost.id == "infrastructure.validated"
    assert lost.hint.startswith("version 1: a gate refused it (minimum score: ROC AUC 0.5, at least 0.6), and it was")
    assert registry.get_state("1").refusal


def test_commit_without_a_review_counts_half(scored: ScoredProject) -> None:
    (scored.path / "params.yaml").write_text((scored.path / "params.yaml").read_text() + "\n")
    assert points_of(scored, "model.reviewed") == 0
    project.commit(scored.path, "Change a parameter\n\nReviewed-by: A <a@b.c>")  # By its author.
    assert points_of(scored, "model.reviewed") == 0.5


def test_documented_manual_test_counts_half(scored: ScoredProject) -> None:
    (scored.path / "reports" / "ablation.json").unlink()
    assert points_of(scored, "model.tuned") == 0
    today = datetime.now(UTC).date()
    for date, wanted in ((today, 0.5), (today - timedelta(days=91), 0), (today + timedelta(days=2), 0)):
        text = f"- {{test: model.tuned, at: {date}, by: A. Person, result: twenty trials by hand}}\n"
        manual.FILE.write_text(text)
        assert points_of(scored, "model.tuned") == 0, "it is not committed"
        project.commit(scored.path, "Document")
        assert points_of(scored, "model.tuned") == wanted


def test_malformed_manual_test_is_an_error(scored: ScoredProject) -> None:
    manual.FILE.write_text("- {test: model.tuned, points: 1}\n")
    with pytest.raises(ConfigError, match=r"manual_tests\.yaml"):
        scored.collect()


def test_reports_name_evidence_paths_and_ages(scored: ScoredProject) -> None:
    (scored.path / "compute_baseline.json").unlink()
    card = scored.score()
    report.write(card)
    assert read_json(report.JSON)["sections"] == card.sections
    page = report.MARKDOWN.read_text()
    assert page.startswith("# ML Test Score of flights: 6 of 7")
    assert page.count("\n| 1 |") == 27
    assert "delete compute_baseline.json to accept" in page
    lines = list(report.render_text(card))
    assert sum(line.startswith("  1  ") for line in lines) == 27
    assert any("reports/validation.json (" in line for line in lines)
    assert any(line.startswith("     → monitoring.compute: there is no baseline") for line in lines)


def test_command_prints_28_lines_and_can_fail(scored: ScoredProject) -> None:
    (scored.path / "compute_baseline.json").unlink()
    done = project.cli(scored.path, "ml-test-score", "--min", "7")
    assert done.returncode == 1, done.stderr
    assert "MONITORING 6 of 7" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line[:3].strip() in ("0", "0.5", "1")]) == 28
    assert done.stderr.startswith("error: the ML Test Score is 6")


def points_of(scored: ScoredProject, check: str) -> float:
    return next(one.points for one in scored.score().checks if one.id == check)


def test_marks_of_the_project_and_checks_agree() -> None:
    """Every attack that a check asks for is marked in the project's tests, and nothing else is."""
    import re

    text = "".join(path.read_text() for path in (project.ROOT / "tests").glob("test_*.py"))
    assert set(re.findall(r'mark\.attack\("([^"]+)"\)', text)) == set(list_attacks())


@pytest.mark.parametrize("kind", ["clean", "damaged"])
def test_project_without_any_evidence_scores_nothing(scored: ScoredProject, kind: str) -> None:
    """Nothing fails: what cannot be read is no evidence."""
    for name in ("reports", "bundle", "var"):
        shutil.rmtree(scored.path / name)
    if kind == "damaged":
        for path in (attacks.FILE, paths.MEASURED, paths.ABLATION, schema_changes.REPORT, paths.COMPUTE_BASELINE):
            path.parent.mkdir(exist_ok=True)
            path.write_text("{broken")
    card = evaluate(scored.collect())
    assert sum(card.sections.values()) <= 3
