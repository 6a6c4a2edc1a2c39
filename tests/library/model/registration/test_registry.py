"""The registry keeps what was tried, lets one promoter win, and survives moves, first mornings and absent stores."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from alembic.config import Config
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.metrics import LOSS
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.registration import alembic_paths
from flywheel_ml.model.registration.pyfunc import build_signature
from flywheel_ml.model.registration.registry import CHALLENGER, CHAMPION, Registry, Version
from flywheel_ml.model.training.tune import Trial
from flywheel_ml.utils.errors import ConfigError, GateRefusal, ProjectError, PromotionConflict
from flywheel_ml.utils.files import sha256_file
from library.helpers import project
from library.helpers.store import FAILED_CHECKS, NAME, PASSED_CHECKS, run_at_once, settings

Register = Callable[[Sequence[GateResult]], Version]

STOCK = f"""
import sys
import mlflow, numpy, pandas
frame = pandas.read_parquet(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
answer = model.predict(frame)
numpy.savez(sys.argv[2], values=answer["prediction"].to_numpy(), scores=answer["probability"].to_numpy())
"""


@pytest.mark.chaos
def test_four_processes_open_a_fresh_store_at_once_and_all_succeed(tmp_path: Path) -> None:
    assert run_at_once(tmp_path, "", "", "", "") == ["0"] * 4


def test_register_stores_metrics_gates_lineage_and_bundle(
    registry: Registry, register: Register, bundle_path: Path, tmp_path: Path
) -> None:
    version = register(PASSED_CHECKS)
    run = MlflowClient().get_run(version.run_id)
    manifest = bundle.verify(bundle_path)
    assert version.number == "1"
    assert version.passed
    assert version.digest == sha256_file(bundle_path / bundle.MANIFEST)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1"}
    assert run.data.metrics["test.roc_auc"] == manifest.metrics["test"]["roc_auc"]
    assert run.data.tags["gate.minimum score"] == "passed: ROC AUC 0.7, at least 0.6"
    assert run.data.tags["git_commit"] == "abc"
    registry.download(version, tmp_path / "copy")
    lineage = json.loads((tmp_path / "copy" / bundle.LINEAGE).read_text())
    assert lineage == {"bundle_sha256": version.digest, "git_commit": "abc", "run_id": version.run_id}
    assert bundle.verify(tmp_path / "copy", version.digest) == manifest


def test_refused_model_keeps_reasons_and_never_gets_an_alias(registry: Registry, register: Register) -> None:
    version = register(FAILED_CHECKS)
    assert version.refusal == "minimum score: ROC AUC 0.5, at least 0.6"
    with pytest.raises(GateRefusal, match=r"version 1 was refused .*ROC AUC 0.5.*OVERRIDE="):
        registry.promote("1", None)
    with pytest.raises(GateRefusal, match="cannot challenge"):
        registry.set_challenger("1")
    assert registry.find_alias(CHAMPION) is None
    assert registry.find_alias(CHALLENGER) is None


def test_override_promotes_refused_model_and_records_reason(registry: Registry, register: Register) -> None:
    register(FAILED_CHECKS)
    assert registry.promote("1", None, override="the floor is wrong").number == "1"
    champion = registry.find_alias(CHAMPION)
    assert champion is not None
    assert champion.number == "1"
    assert not champion.passed
    assert MlflowClient().get_model_version(NAME, "1").tags["override"].endswith(": the floor is wrong")


def test_a_version_that_no_gate_has_judged_cannot_be_promoted(registry: Registry, register: Register) -> None:
    MlflowClient().create_model_version(NAME, source=f"runs:/{register(PASSED_CHECKS).run_id}/model")
    with pytest.raises(GateRefusal, match="no gate has checked it"):
        registry.promote("2", None)


@pytest.mark.chaos
def test_concurrent_promotion_succeeds_once_and_conflicts_once(
    folder: Path, registry: Registry, register: Register
) -> None:
    for _ in range(2):
        register(PASSED_CHECKS)
    answers = run_at_once(folder, "1", "2")
    winner = registry.find_alias(CHAMPION)
    assert winner is not None
    loser = "2" if winner.number == "1" else "1"
    assert sorted(answers) == sorted(
        [
            f"promoted {winner.number}",
            f"PromotionConflict version {loser} was not promoted: the champion is version {winner.number}, "
            "not none as expected; check `rollout status` and try again",
        ]
    )


def test_a_promotion_expects_the_champion_it_saw(registry: Registry, register: Register) -> None:
    register(PASSED_CHECKS)
    register(PASSED_CHECKS)
    registry.promote("1", None)
    with pytest.raises(PromotionConflict, match="the champion is version 1, not 7 as expected"):
        registry.promote("2", "7")
    registry.promote("1", "7")  # It is champion already: nothing to decide.
    champion = registry.find_alias(CHAMPION)
    assert champion is not None
    assert champion.number == "1"


def test_a_challenger_that_is_promoted_challenges_no_more(registry: Registry, register: Register) -> None:
    register(PASSED_CHECKS)
    registry.set_challenger("1")
    registry.promote("1", None)
    assert registry.find_alias(CHALLENGER) is None


def test_a_bundle_is_found_by_its_hash_and_verdict(registry: Registry, register: Register) -> None:
    digest = register(PASSED_CHECKS).digest
    assert registry.find(digest, passed=False) is None
    register(FAILED_CHECKS)
    passed, refused = registry.find(digest, passed=True), registry.find(digest, passed=False)
    assert passed is not None
    assert refused is not None
    assert (passed.number, refused.number) == ("1", "2")
    assert registry.find("0" * 64, passed=True) is None


def test_unknown_version_is_named_with_the_known_ones(registry: Registry, register: Register) -> None:
    register(PASSED_CHECKS)
    for number in ("9", "latest"):
        with pytest.raises(ProjectError, match=f"model '{NAME}' has no version '{number}'; known: 1"):
            registry.get(number)


def test_moved_store_loads_champion_here_and_in_plain_mlflow(
    register: Register,
    registry: Registry,
    folder: Path,
    bundle_path: Path,
    table: pl.DataFrame,
    contract: Contract,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(PASSED_CHECKS)
    registry.promote("1", None)
    moved = folder.parent / "moved to another place"
    folder.rename(moved)
    table.head(200).select(column.name for column in contract.inputs).write_parquet(moved / "rows.parquet")

    monkeypatch.chdir(moved)
    opened = Registry.open(settings(moved), NAME)
    champion = opened.find_alias(CHAMPION)
    assert champion is not None
    opened.download(champion, moved / "downloaded")
    assert bundle.verify(moved / "downloaded", champion.digest)
    answer = project.run(
        moved,
        "-c",
        STOCK,
        "rows.parquet",
        "answer.npz",
        MLFLOW_TRACKING_URI="sqlite:///mlflow.db",
        PYTHONWARNINGS="ignore",
    )
    assert answer.returncode == 0, answer.stderr
    stock = np.load(moved / "answer.npz")
    ours = Bundle.open(bundle_path).predict(tables.to_columns(table.head(200), contract.inputs))
    assert stock["scores"].tobytes() == ours.scores.tobytes()
    assert (stock["values"] == ours.values).all()


@pytest.mark.parametrize("name", ["50% off", "what?", "#1", "a b", 'it\'s "so"', "größe", "a:b"])
def test_the_folder_of_a_store_may_have_any_name(
    tmp_path: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = Settings(tracking_uri=f"sqlite:///{tmp_path.name}.db")  # MLflow keeps one connection to each.
    for folder in (tmp_path / name, tmp_path / "plain"):
        if folder.name == "plain":
            (tmp_path / name).rename(folder)
        else:
            folder.mkdir()
        monkeypatch.chdir(folder)
        registry = Registry.open(here, NAME)
        if not registry.list_versions():
            registry.register(bundle_path, PASSED_CHECKS, {}, {}, [])
        registry.download(registry.get("1"), folder / "copy")
        assert bundle.verify(folder / "copy", registry.get("1").digest)
        assert {path.name for path in folder.iterdir()} == {Path(here.tracking_uri).name, "mlartifacts", "var", "copy"}
        shutil.rmtree(folder / "copy")


def test_migrations_below_a_folder_with_a_percent_sign_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config, "set_main_option", Config.set_main_option)
    monkeypatch.setattr(alembic_paths, "__file__", "/50% off/alembic_paths.py")
    for _ in range(2):
        alembic_paths.escape_percent()
    place = tmp_path / "50% off"
    place.mkdir()
    config = Config()
    config.set_main_option("script_location", str(place))
    config.set_main_option("sqlalchemy.url", "sqlite:///50%% off")
    assert config.get_main_option("script_location") == str(place)
    assert config.get_main_option("sqlalchemy.url") == "sqlite:///50% off"


def test_shared_store_is_not_changed_for_this_project(
    registry: Registry, register: Register, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(PASSED_CHECKS)
    other = folder.parent / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    found = Registry.open(settings(folder), NAME)
    found.download(found.get("1"), other / "copy")
    assert (other / "copy" / bundle.MANIFEST).is_file()
    assert not (other / "mlartifacts").exists()


def test_missing_artifacts_are_reported_in_one_line(registry: Registry, register: Register, folder: Path) -> None:
    version = register(PASSED_CHECKS)
    shutil.rmtree(folder / "mlartifacts")
    with pytest.raises(ProjectError, match=f"models:/{NAME}/1/.* cannot be downloaded: .*; restore its files") as told:
        registry.download(version, folder / "copy")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://someone:secret@127.0.0.1:9",
        "sqlite:///a-file/mlflow.db",
        "postgresql://someone:secret@127.0.0.1:9/mlflow",
        "nonsense://someone:secret@host",
    ],
)
def test_unusable_store_is_one_line_without_the_password(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"ML_TRACKING_URI: '.*' cannot be used: ") as told:
        Registry.open(Settings(tracking_uri=uri), NAME)
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_unavailable_registry_differs_from_missing_champion(
    registry: Registry, register: Register, folder: Path
) -> None:
    register(PASSED_CHECKS)
    registry.promote("1", None)
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("ALTER TABLE registered_model_aliases RENAME TO gone")
    with pytest.raises(MlflowException, match="no such table"):
        registry.find_alias(CHAMPION)


@pytest.mark.chaos
def test_a_run_that_a_killed_process_left_is_marked_as_failed(
    registry: Registry, register: Register, folder: Path, bundle_path: Path
) -> None:
    crash = f"""
from pathlib import Path
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.core.settings import Settings
Registry.open(Settings.read(), {NAME!r}).register(Path({str(bundle_path)!r}), [], {{}}, {{}}, [])
"""
    killed = project.run(folder, "-c", crash, PYTHONPATH=str(project.AUDIT_HOOK), AUDIT_KILL="open:MLmodel")
    assert killed.returncode == -9
    assert registry.list_versions() == []
    register(PASSED_CHECKS)
    experiment = MlflowClient().get_experiment_by_name(NAME)
    assert experiment is not None
    runs = MlflowClient().search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    assert [version.number for version in registry.list_versions()] == ["1"]


def test_the_signature_takes_rows_with_gaps_and_without(columns: Columns, contract: Contract) -> None:
    found = build_signature(contract).inputs
    assert found is not None
    assert found.input_names() == list(columns)
    nullable = {column.name for column in contract.inputs if column.nullable}
    assert {spec.name for spec in found.inputs if not spec.required} == nullable


def test_every_trial_is_a_run_nested_in_that_of_the_model(registry: Registry, bundle_path: Path) -> None:
    trials = [Trial({}, 0.6, 1.5), Trial({"max_iter": 80, "learning_rate": 0.2}, 0.5, None)]
    version = registry.register(bundle_path, [], {"seed": 1}, {}, [], trials)
    client = registry._client
    experiment = client.get_experiment_by_name(registry.name).experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{version.run_id}'")
    told = {run.info.run_name: (run.data.params, run.data.metrics, run.info.status) for run in nested}
    loss = f"validation.{LOSS[bundle.verify(bundle_path).task]}"
    assert told == {
        "trial 0": ({}, {loss: 0.6, "seconds": 1.5}, "FINISHED"),
        "trial 1": ({"max_iter": "80", "learning_rate": "0.2"}, {loss: 0.5}, "FINISHED"),
    }
