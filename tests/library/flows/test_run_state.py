"""A run that has nothing to do is known without a server, and never taken for one that has."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params, RolloutParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout, run_state, training
from flywheel_ml.model.registration import roles
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.utils.errors import ProjectError
from library.helpers import project, store
from library.helpers.commands import find_served_bundle

SERVING = Path("var/serving")


def last(**changes: Any) -> Any:
    project.set_params(Path(), changes)
    return run_state.find_last_run(project.PROJECT, Settings.read(), project.PROJECT.load_params())


def test_a_finished_run_is_known_with_its_outcome(finished: Path) -> None:
    found = last()
    assert (found["version"], found["role"]) == ("1", "champion")
    assert last(monitor={"significance_level": 0.02}), "parameters of monitoring alone are no reason to train"


@pytest.mark.parametrize("changes", [{"gates": {"min_score": 0.55}}, {"rollout": {"auto_promote": True}}])
def test_other_gates_or_another_way_to_promote_ask_for_a_run(finished: Path, changes: dict[str, Any]) -> None:
    assert last(**changes) is None


@pytest.mark.parametrize("name", ["flows.py", "gates.py"])
def test_changed_code_of_flows_or_gates_asks_for_a_run(finished: Path, name: str) -> None:
    assert last()
    with (project.PROJECT.folder / name).open("a") as stream:
        stream.write("# A step more.\n")
    assert last() is None


def test_a_lost_store_bundle_or_record_asks_for_a_run(finished: Path) -> None:
    for path in (
        Path("mlflow.db"),
        paths.BUNDLE / bundle.MANIFEST,
        run_state.STATE_FILE,
        SERVING / serving_folder.ROUTING,
    ):
        aside = path.rename(path.with_name("aside"))
        assert last() is None, path
        aside.rename(path)
    assert last()


def test_a_tampered_champion_asks_for_a_run(finished: Path) -> None:
    with (find_served_bundle(SERVING, "1") / bundle.MODEL).open("ab") as stream:
        stream.write(b"x")
    assert last() is None


def test_a_promotion_or_rollback_since_asks_for_a_run(finished: Path) -> None:
    now = serving_folder.read_routing(SERVING)
    assert now.champion is not None
    other = now.champion.model_copy(update={"version": "2"})
    shutil.copytree(serving_folder.bundle_folder(SERVING, now.champion), serving_folder.bundle_folder(SERVING, other))
    serving_folder.write_routing(SERVING, now.model_copy(update={"champion": other}))
    assert last() is None


def test_current_role_is_returned_after_promotion_and_rollback(finished: Path, bundle_path: Path) -> None:
    settings = store.settings(finished)
    registry = Registry.open(settings, Contract.load(paths.CONTRACT).name)
    registry.register(
        store.copy_with_new_card(bundle_path, finished.with_name("other")), store.PASSED_CHECKS, {}, {}, []
    )

    def told() -> tuple[str, str | None]:
        found = last()
        return found["role"], found["champion"]

    assert told() == ("champion", "1")
    rollout.promote(registry, settings, "2")
    assert told() == ("passed", "2")
    registry.set_challenger("1")
    assert told() == ("challenger", "2")
    rollout.promote(registry, settings, "1")
    rollout.rollback(registry, settings)
    assert told() == ("rolled back", "2")
    with pytest.raises(
        ProjectError, match=r"no challenger: version 2 is champion, version 1 was rolled back by .*: rolled"
    ):
        rollout.promote(registry, settings, None)
    params = Params.load(paths.PARAMS)
    at_once = params.model_copy(update={"rollout": RolloutParams(auto_promote=True)})
    assert training.assign_role(registry, registry.get("1"), at_once) == "rolled back", "no run brings it back"
    rollout.promote(registry, settings, "1")
    assert told() == ("champion", "1")


def test_recreated_registry_asks_for_a_run(finished: Path) -> None:
    connection = sqlite3.connect("mlflow.db")
    for table in ("model_version_tags", "registered_model_aliases"):
        connection.execute(f"DELETE FROM {table}")
    connection.commit()
    connection.close()
    assert last() is None


@pytest.mark.parametrize("uri", ["sqlite:///nothing.db", "postgresql://127.0.0.1:1/x", "http://127.0.0.1:1", "no uri"])
def test_unreadable_registry_asks_for_a_run(finished: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("ML_TRACKING_URI", uri)
    assert roles.read_state(Settings.read(), "any", "1") is None


def test_a_project_that_never_ran_has_no_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.make(tmp_path / "new", 50))
    assert last() is None
