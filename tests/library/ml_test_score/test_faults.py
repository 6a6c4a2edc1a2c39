"""Twelve faults, each injected into a project with all evidence and real traffic, are caught by a named check."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import ScoreParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import compute, monitoring, retention, scoring
from flywheel_ml.ml_test_score import attacks, facts
from flywheel_ml.ml_test_score.score import evaluate
from flywheel_ml.ml_test_score.traffic import LATEST
from flywheel_ml.model.evaluation import stability
from flywheel_ml.monitoring.run import MonitoringRun
from flywheel_ml.testing.faulty_models import break_model
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import Server
from flywheel_ml.utils.files import read_json, sha256_file, write_json
from library.helpers import project
from library.ml_test_score.conftest import ScoredProject

N_ROWS = 400
Lost = Callable[[], list[str]]

UNSEEDED = """

def _build_unseeded(task, params, featurizer, seed):  # type: ignore[no-untyped-def]
    import random

    from flywheel_ml.model.pipelines import estimators

    drawn = params.model_copy(update={"learning_rate": random.uniform(0.05, 0.2)})
    return estimators.hist_gradient_boosting(task, drawn, featurizer, seed)


ESTIMATORS["hist_gradient_boosting"] = ESTIMATORS["hist_gradient_boosting"]._replace(build=_build_unseeded)
"""


def log_rows(path: Path, change: pl.Expr | None = None) -> None:
    """Let the server of a project answer test rows, changed by a caller's fault."""
    contract = Contract.load(path / paths.CONTRACT)
    table = tables.read(path / paths.SPLITS["test"], contract).head(N_ROWS)
    table = table if change is None else table.with_columns(change)
    keys = table["flight_id"].to_list()
    instances = [{**row, "flight_id": key} for row, key in zip(json_rows(table, contract), keys, strict=True)]
    places = {"ML_SERVING_FOLDER": str(path / "var/serving"), "ML_PREDICTION_LOG": str(path / "var/log")}
    with Server(project.PACKAGE, path, **places) as server, server.client() as client:
        for some in (instances, *([one] for one in instances[:20])):  # Many rows are logged as a block.
            answer = client.post("/predict", json={"instances": some})
            assert answer.status_code == 200, answer.text
    server.errors.unlink()


@pytest.fixture(scope="module")
def scored_project(scored_project: ScoredProject) -> ScoredProject:
    """The project after its server answered rows like those of training, and the log was monitored."""
    log_rows(scored_project.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scored_project.path)
        for name, value in project.environment(scored_project.path.parent).items():
            patch.setenv(name, value)
        monitor_log()
    return scored_project


def monitor_log(source: Path | None = None) -> MonitoringRun:
    """Monitor the log of the current folder, or a scored file."""
    return monitoring.monitor_window(project.PROJECT, settings(), project.PROJECT.load_params(), source)


def get_hint(scored: ScoredProject, check: str) -> str:
    """Score again and return the hint of a check; empty if it has its point."""
    return next(one.hint for one in scored.score().checks if one.id == check)


def settings() -> Settings:
    return Settings(_env_file=None)


def set_params(scored: ScoredProject, **changes: dict[str, object]) -> None:
    """Change and commit params.yaml; the attacks pass again."""
    from library.ml_test_score.conftest import REVIEW, pass_attacks

    project.set_params(scored.path, changes)
    project.commit(scored.path, REVIEW)
    pass_attacks(scored.path)


def replace_model(path: Path, content: bytes) -> str:
    """Replace the model of a bundle, with a manifest that fits; returns the new digest."""
    facts_ = bundle.verify(path).model_dump(exclude={"files"})
    (path / bundle.MODEL).write_bytes(content)
    bundle.write_manifest(path, facts_)
    return sha256_file(path / bundle.MANIFEST)


def test_project_with_traffic_has_all_points(lost_points: Lost) -> None:
    assert lost_points() == []


def test_cents_instead_of_dollars_in_serving(scored: ScoredProject, lost_points: Lost) -> None:
    shutil.rmtree(scored.path / "var/log")
    log_rows(scored.path, pl.col("humid") / 100)
    assert monitor_log().result.drift.drifted
    assert "monitoring.invariants" in lost_points()
    assert get_hint(scored, "monitoring.invariants").startswith("'humid' has drifted: `make monitor`; if")


@pytest.mark.parametrize("check", ["monitoring.invariants", "monitoring.quality"])
def test_log_without_a_valid_result_costs_the_points(scored: ScoredProject, check: str) -> None:
    """It may be missing, damaged, old, of a file or of another model."""
    known = read_json(LATEST)
    LATEST.unlink()
    assert get_hint(scored, check).startswith("the log has rows and was not monitored: `make monitor`")
    for content in ("", "[]", "{}", json.dumps({**known, "drift": {}})):
        LATEST.write_text(content)
        assert get_hint(scored, check).startswith("reports/monitoring/latest.json ")
    write_json(LATEST, {**known, "source": "scored file catalog.parquet"})
    assert "is about a scored file catalog.parquet, not the log: `make monitor`" in get_hint(scored, check)
    write_json(LATEST, {**known, "model": {**known["model"], "digest": "0" * 64}})
    assert get_hint(scored, check).startswith("the log was monitored for another model, version 1 is champion: ")
    old = datetime.fromisoformat(known["at"]) - timedelta(days=8)
    write_json(LATEST, {**known, "at": old.isoformat()})
    assert get_hint(scored, check).startswith("the log was monitored 8 days ago, allowed 7: `make monitor`")
    write_json(LATEST, known)
    assert get_hint(scored, check) == ""


def test_too_little_traffic_is_not_called_free_of_drift(scored: ScoredProject) -> None:
    known = read_json(LATEST)
    drift = {**known["drift"], "verdict": "insufficient data", "reason": "9 rows"}
    write_json(LATEST, {**known, "drift": drift})
    (check,) = [one for one in scored.score().checks if one.id == "monitoring.invariants"]
    assert check.points == 1
    assert check.evidence[1].text.endswith("satisfy the contract; drift is not known: 9 rows")


def test_degraded_log_costs_the_point_and_a_scored_file_does_not_hide_it(
    scored: ScoredProject, lost_points: Lost
) -> None:
    write_json(LATEST, {**read_json(LATEST), "verdict": "degraded", "headline": "The model has become worse."})
    assert lost_points() == ["monitoring.quality"]
    table = tables.read(paths.SPLITS["test"], Contract.load(paths.CONTRACT))
    tables.write(table, Path("in.parquet"))
    scoring.score(project.PROJECT, Path("in.parquet"), Path("catalog.parquet"), settings(), ScoreParams())
    assert monitor_log(Path("catalog.parquet")).result.verdict == "ok"
    assert lost_points() == ["monitoring.quality"]


def test_forbidden_column(scored: ScoredProject, lost_points: Lost) -> None:
    set_params(scored, gates={"forbidden_columns": ["carrier"]})
    assert lost_points() == ["data.requirements"]


def test_personal_column_as_input(scored: ScoredProject, lost_points: Lost) -> None:
    path = scored.path / paths.CONTRACT
    path.write_text(path.read_text().replace("name: dest\n", "name: dest\n    personal: true\n"))
    assert "data.requirements" in lost_points()


def test_model_of_forty_weeks(scored: ScoredProject, lost_points: Lost) -> None:
    ref = serving_folder.read_routing(Path("var/serving")).champion
    assert ref is not None
    path = serving_folder.bundle_folder(Path("var/serving"), ref) / bundle.LINEAGE
    lineage = read_json(path)
    trained = datetime.fromisoformat(lineage["trained_at"]) - timedelta(weeks=40)
    path.write_text(json.dumps({**lineage, "trained_at": trained.isoformat()}))
    assert lost_points() == ["monitoring.staleness"]


def test_operator_missing_in_the_runtime(scored: ScoredProject, lost_points: Lost) -> None:
    routing = serving_folder.read_routing(Path("var/serving"))
    assert routing.champion is not None
    path = serving_folder.bundle_folder(Path("var/serving"), routing.champion)
    digest = replace_model(path, break_model((path / bundle.MODEL).read_bytes(), "missing operator"))
    champion = routing.champion.model_copy(update={"digest": digest})
    moved = serving_folder.bundle_folder(Path("var/serving"), champion)
    path.rename(moved)
    serving_folder.write_routing(Path("var/serving"), routing.model_copy(update={"champion": champion}))
    assert "infrastructure.validated" in lost_points()
    (hint,) = [one.hint for one in scored.score().checks if one.id == "infrastructure.validated"]
    assert "does not load" in hint


def test_nan_as_prediction(scored: ScoredProject, lost_points: Lost) -> None:
    digest = replace_model(paths.BUNDLE, break_model((paths.BUNDLE / bundle.MODEL).read_bytes(), "NaN"))
    opened = Bundle.open(paths.BUNDLE, features=project.PROJECT.features)
    rows = tables.read(paths.SPLITS["test"], opened.contract).head(20)
    found = stability.find_unstable(opened, tables.to_columns(rows, opened.contract.inputs))
    measured = compute.read_measurements()
    assert measured is not None
    changed = measured.model_copy(update={"digest": digest, "unstable": found})
    write_json(paths.MEASURED, changed.model_dump(mode="json"))
    assert "monitoring.stability" in lost_points()


def test_creeping_latency(lost_points: Lost) -> None:
    """The committed baseline is four times as fast as the model of now."""
    baseline = compute.read_baseline()
    assert baseline is not None
    quicker = baseline.model_copy(update={"latency_cpu_ms": baseline.latency_cpu_ms / 4})
    write_json(paths.COMPUTE_BASELINE, quicker.model_dump(mode="json"))
    assert lost_points() == ["monitoring.compute"]


def test_deleted_person_returns_with_new_data(lost_points: Lost) -> None:
    """An erased entity is in the table again after the source delivered it again."""
    before, contract = paths.TABLE.read_bytes(), Contract.load(paths.CONTRACT)
    key = tables.read(paths.SPLITS["test"], contract)["flight_id"][0]
    done = retention.erase(settings(), key)
    assert done.found
    raw = project.PROJECT.load_params().data.raw
    rows = pl.read_parquet(raw).filter(pl.col("flight_id") != key)
    rows.write_parquet(raw)
    assert "data.privacy" not in lost_points()
    paths.TABLE.write_bytes(before)
    assert "data.privacy" in lost_points()


def test_address_in_a_log(lost_points: Lost) -> None:
    Path("var/server.log").write_text("could not notify jane.roe@example.org\n")
    assert lost_points() == ["data.privacy"]


def test_skew_between_server_and_batch(lost_points: Lost) -> None:
    (path,) = Path("var/log").glob("*.db")
    with sqlite3.connect(path) as connection:
        connection.execute("update predictions set score = score + 0.001 where rowid % 2")
    connection.close()
    assert lost_points() == ["monitoring.skew"]


def test_library_that_training_did_not_use(monkeypatch: pytest.MonkeyPatch, lost_points: Lost) -> None:
    known = facts._find_version
    monkeypatch.setattr(facts, "_find_version", lambda name: "0.1" if name == "onnxruntime" else known(name))
    assert lost_points() == ["monitoring.dependencies"]


def test_edit_of_the_specification_without_a_commit(lost_points: Lost) -> None:
    path = project.PROJECT.folder / "gates.py"
    path.write_text(path.read_text() + "\n")
    assert "model.reviewed" in lost_points()


def test_unseeded_training(scored: ScoredProject, tmp_path: Path) -> None:
    """The project's own test fails, is recorded, and costs the point."""
    root = tmp_path / "unseeded"
    shutil.copytree(project.ROOT, root, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    path = root / project.PROJECT.folder / "estimators.py"
    path.write_text(path.read_text() + UNSEEDED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_attacks.py", "-k", "twice"],
        cwd=root,
        env=project.environment(tmp_path) | {"PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed" in done.stdout, done.stdout + done.stderr
    (result,) = attacks.read_results(root).values()
    assert (result.attacks, result.outcome) == (("unseeded training",), "failed")
    found = scored.collect()
    others = {name: one for name, one in found.tests.items() if "unseeded training" not in one.attacks}
    failed = result.model_copy(update={"code": found.code})
    card = evaluate(found._replace(tests={**others, "twice": failed}))
    assert [one.id for one in card.checks if one.points < 1] == ["infrastructure.reproducible"]
