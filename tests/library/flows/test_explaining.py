"""A logged prediction is explained by the model version that made it, wherever that is kept, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.bundle import BACKGROUND, MODEL, Bundle
from flywheel_ml.core.contract import Contract, columns_from_rows
from flywheel_ml.core.settings import Settings
from flywheel_ml.explanation.explanation import explain
from flywheel_ml.flows.explaining import explain_logged
from flywheel_ml.flows.rollout import promote
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.prediction_log import Prediction, Writer, dumps, new_id, now_us
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.utils.errors import IntegrityError, NotExplainable, ProjectError
from library.flows.test_rollout import artifacts
from library.helpers.commands import find_served_bundle
from library.helpers.project import PROJECT

Log = Callable[..., str]


@pytest.fixture
def row(table: pl.DataFrame, contract: Contract) -> dict[str, Any]:
    return json_rows(table.tail(1), contract)[0]


@pytest.fixture
def log(settings: Settings, bundle_path: Path, row: dict[str, Any]) -> Log:
    """Logs the row as a version answered it, or as it is said to have; returns the prediction's id."""

    def call(version: str = "1", **changed: Any) -> str:
        told = Bundle.open(bundle_path).predict(columns_from_rows(Bundle.open(bundle_path).contract.inputs, [row]))
        facts: dict[str, Any] = {
            "id": new_id(),
            "timestamp_us": now_us(),
            "entity_id": None,
            "event_timestamp_us": None,
            "variant": "champion",
            "model_version": version,
            "model_digest": None,
            "inputs": dumps(row),
            "output": dumps({"prediction": told.values.tolist()[0]}),
            "score": told.scores.tolist()[0],
            "latency_us": 100,
            "degraded": False,
        }
        made = Prediction(**{**facts, **changed})
        with Writer(settings.prediction_log, "serve") as writer:
            writer.append([made]).result(10)
        return made.id

    return call


def never() -> Registry:
    pytest.fail("the registry was asked")


def test_the_serving_folder_is_enough_for_a_version_that_it_holds(
    two: Registry, settings: Settings, log: Log, bundle_path: Path, row: dict[str, Any]
) -> None:
    name = log("1")
    found = explain_logged(PROJECT, name, settings, never)
    assert found.prediction.id == name
    assert found.explanation == explain(Bundle.open(bundle_path), row)
    facts = json.loads(json.dumps(found.to_dict()))
    assert (facts["id"], facts["model_version"], facts["variant"]) == (name, "1", "champion")
    assert facts["base"] + sum(one["contribution"] for one in facts["contributions"]) == pytest.approx(facts["score"])


def test_former_version_explains_its_own_predictions(two: Registry, settings: Settings, log: Log) -> None:
    name = log("1")
    promote(two, settings, "2")
    assert explain_logged(PROJECT, name, settings, never).prediction.model_version == "1"


def test_what_a_shadow_said_is_explained_too(two: Registry, settings: Settings, log: Log) -> None:
    name = log("1", variant="shadow")
    assert explain_logged(PROJECT, name, settings, never).to_dict()["variant"] == "shadow"


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_version_missing_in_folder_comes_from_the_registry(
    two: Registry, settings: Settings, log: Log, damage: str
) -> None:
    name = log("1")
    path = find_served_bundle(settings.serving_folder, "1")
    if damage == "gone":
        shutil.rmtree(path)
    else:
        (path / MODEL).write_bytes(b"another")
    before = sorted(settings.serving_folder.rglob("*"))
    assert explain_logged(PROJECT, name, settings, lambda: two).prediction.id == name
    assert sorted(settings.serving_folder.rglob("*")) == before


def test_bundle_with_another_digest_is_not_taken_for_the_version(two: Registry, settings: Settings, log: Log) -> None:
    path = find_served_bundle(settings.serving_folder, "1")
    (path / BACKGROUND).write_text("[]\n")
    facts = json.loads((path / bundle.MANIFEST).read_text())
    bundle.write_manifest(path, {name: value for name, value in facts.items() if name != "files"})
    assert explain_logged(PROJECT, log("1"), settings, lambda: two).explanation.method.background_rows == 50


def test_missing_version_is_named_with_both_places(two: Registry, settings: Settings, folder: Path, log: Log) -> None:
    with pytest.raises(
        ProjectError,
        match=r"version 7, which made prediction '.*', is no longer in the serving folder, "
        r"and the registry does not have it: .*has no version '7'; known: ",
    ):
        explain_logged(PROJECT, log("7"), settings, lambda: two)
    name = log("1")
    shutil.rmtree(find_served_bundle(settings.serving_folder, "1"))
    with (artifacts(folder, two, "1") / BACKGROUND).open("a") as stream:
        stream.write(" ")
    with pytest.raises(ProjectError, match=r"and the registry does not have it: .*background.json was changed"):
        explain_logged(PROJECT, name, settings, lambda: two)


def test_an_id_that_the_log_does_not_have_is_named(two: Registry, settings: Settings) -> None:
    with pytest.raises(ProjectError, match=r"the prediction log has no prediction 'nobody'"):
        explain_logged(PROJECT, "nobody", settings, never)


def test_what_the_prior_answered_has_no_explanation(
    two: Registry, settings: Settings, log: Log, bundle_path: Path
) -> None:
    prior = float(Bundle.open(bundle_path).manifest.prior[-1])
    name = log("1", variant="fallback", degraded=True, score=prior)
    with pytest.raises(NotExplainable, match=r"made by the class prior of version 1.* nothing to explain"):
        explain_logged(PROJECT, name, settings, never)


def test_fallback_prediction_of_former_version_is_explained(two: Registry, settings: Settings, log: Log) -> None:
    name = log("1", variant="fallback", degraded=True)
    assert explain_logged(PROJECT, name, settings, never).to_dict()["degraded"] is True


def test_score_that_is_not_reproduced_is_not_explained(two: Registry, settings: Settings, log: Log) -> None:
    with pytest.raises(IntegrityError, match=r"was logged with the score 0.99, and version 1 returns 0\.\d+ here"):
        explain_logged(PROJECT, log("1", score=0.99), settings, never)


def test_a_version_from_before_explanations_says_what_to_do(two: Registry, settings: Settings, log: Log) -> None:
    path = find_served_bundle(settings.serving_folder, "1")
    (path / BACKGROUND).unlink()
    facts = {**json.loads((path / bundle.MANIFEST).read_text()), "format": 1}
    bundle.write_manifest(path, {name: value for name, value in facts.items() if name != "files"})
    (settings.serving_folder / serving_folder.ROUTING).unlink()
    with pytest.raises(NotExplainable, match="train again"):
        explain_logged(PROJECT, log("1"), settings, never)
