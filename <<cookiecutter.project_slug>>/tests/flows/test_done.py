"""A run that has nothing to do is known without a server, and never taken for one that has."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from << cookiecutter.package_name >> import bundle, stage
from << cookiecutter.package_name >>.flows import done
from << cookiecutter.package_name >>.params import Params
from << cookiecutter.package_name >>.serving import routing
from << cookiecutter.package_name >>.settings import Settings

from .. import project

SERVING = Path("var/serving")


def last(**changes: Any) -> Any:
    project.set_params(Path(), changes)
    return done.last(Settings.read(), Params.load(stage.PARAMS))


def test_a_finished_run_is_known_with_its_outcome(finished: Path) -> None:
    found = last()
    assert (found["version"], found["role"]) == ("1", "champion")
    assert last(monitor={"alpha": 0.02}), "what only monitoring reads is no reason to train"


@pytest.mark.parametrize("changes", [{"gates": {"floor": 0.55}}, {"rollout": {"auto_promote": True}}])
def test_other_gates_or_another_way_to_promote_ask_for_a_run(finished: Path, changes: dict[str, Any]) -> None:
    assert last(**changes) is None


def test_a_lost_store_bundle_or_record_asks_for_a_run(finished: Path) -> None:
    for path in (Path("mlflow.db"), stage.BUNDLE / bundle.MANIFEST, done.STATE, SERVING / routing.ROUTING):
        aside = path.rename(path.with_name("aside"))
        assert last() is None, path
        aside.rename(path)
    assert last()


def test_a_tampered_champion_asks_for_a_run(finished: Path) -> None:
    with (SERVING / routing.BUNDLES / "1" / bundle.MODEL).open("ab") as stream:
        stream.write(b"x")
    assert last() is None


def test_a_promotion_or_rollback_since_asks_for_a_run(finished: Path) -> None:
    now = routing.read(SERVING)
    assert now.champion is not None
    other = now.champion.model_copy(update={"version": "2"})
    shutil.copytree(routing.bundle_folder(SERVING, now.champion), routing.bundle_folder(SERVING, other))
    routing.write(SERVING, now.model_copy(update={"champion": other}))
    assert last() is None


def test_a_project_that_never_ran_has_no_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.make(tmp_path / "new", 50))
    assert last() is None
