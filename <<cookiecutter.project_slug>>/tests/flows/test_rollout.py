"""The serving folder follows the registry, in steps of which each leaves a folder that serves."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from << cookiecutter.package_name >> import bundle
from << cookiecutter.package_name >>.errors import Busy, GateRefusal, IntegrityError, ProjectError
from << cookiecutter.package_name >>.flows import engine, rollout
from << cookiecutter.package_name >>.model.registry import CHALLENGER, CHAMPION, Registry
from << cookiecutter.package_name >>.serving import routing
from << cookiecutter.package_name >>.settings import Settings

from .. import project, store

PROMOTE = f"""
from {project.PACKAGE}.flows import rollout
from {project.PACKAGE}.model.registry import Registry
from {project.PACKAGE}.settings import Settings
rollout.promote(Registry.open(Settings.read(), {store.NAME!r}), Settings.read(), "2")
"""


def serving(folder: Path) -> str:
    """The version that servers answer with; its bundle is whole."""
    now = routing.read(folder / "var" / "serving")
    assert now.champion is not None
    bundle.verify(routing.bundle_folder(folder / "var" / "serving", now.champion), now.champion.digest)
    return now.champion.version


def champion(registry: Registry) -> str:
    found = registry.alias(CHAMPION)
    assert found is not None
    return found.number


def artifacts(folder: Path, registry: Registry, number: str) -> Path:
    """Where the registry keeps a version's bundle."""
    digest = registry.get(number).digest
    found = [path.parent for path in (folder / "mlartifacts").rglob(bundle.LINEAGE) if digest in path.read_text()]
    return found[0]


def test_a_promotion_serves_the_version_and_records_who_when_from_to_and_why(
    two: Registry, settings: Settings, folder: Path
) -> None:
    assert rollout.promote(two, settings, None).number == "2"
    assert (champion(two), serving(folder)) == ("2", "2")
    assert two.alias(CHALLENGER) is None
    entry = rollout.audit(settings.serving_folder)[-1]
    assert (entry["what"], entry["from"], entry["to"], entry["why"]) == ("champion", "1", "2", "promoted")
    assert entry["who"]
    assert entry["at"].endswith("+00:00")


def test_a_sync_repeated_changes_nothing(two: Registry, settings: Settings) -> None:
    before = (settings.serving_folder / routing.ROUTING).stat().st_mtime_ns
    now = rollout.sync(two, settings, why="again")
    assert now.reason == "first champion"
    assert (settings.serving_folder / routing.ROUTING).stat().st_mtime_ns == before
    assert len(rollout.audit(settings.serving_folder)) == 1


def test_without_a_champion_there_is_nothing_to_roll_out(registry: Registry, settings: Settings) -> None:
    with pytest.raises(ProjectError, match="the registry has no champion"):
        rollout.sync(registry, settings, why="x")
    with pytest.raises(ProjectError, match="there is no challenger; name a version"):
        rollout.promote(registry, settings, None)


@pytest.mark.chaos
def test_a_kill_between_bundle_and_pointer_leaves_the_old_champion_and_the_next_promotion_completes(
    two: Registry, settings: Settings, folder: Path
) -> None:
    killed = project.run(folder, "-c", PROMOTE, PYTHONPATH=str(project.SPY), SPY_KILL=r"os.rename:routing\.json")
    assert killed.returncode == -9
    assert serving(folder) == "1"
    assert bundle.verify(settings.serving_folder / routing.BUNDLES / "2")
    assert project.leftovers(settings.serving_folder)
    rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("2", "2")
    assert [entry["to"] for entry in rollout.audit(settings.serving_folder)] == ["1", "2"]
    assert project.leftovers(settings.serving_folder) == []


def test_a_tampered_artifact_is_refused_and_nothing_changes(two: Registry, settings: Settings, folder: Path) -> None:
    with (artifacts(folder, two, "2") / bundle.MODEL).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityError, match=r"model.onnx was changed after it was sealed"):
        rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("1", "1")
    assert project.leftovers(settings.serving_folder) == []


def test_a_bundle_swapped_for_another_is_refused(two: Registry, settings: Settings, folder: Path) -> None:
    target = artifacts(folder, two, "2")
    shutil.copytree(artifacts(folder, two, "1"), target, dirs_exist_ok=True)
    with pytest.raises(IntegrityError, match=r"manifest.json was changed after it was registered"):
        rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("1", "1")


def test_artifacts_that_are_gone_leave_registry_and_serving_folder_as_they_were(
    two: Registry, settings: Settings, folder: Path
) -> None:
    shutil.rmtree(folder / "mlartifacts")
    with pytest.raises(ProjectError, match="cannot be downloaded"):
        rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("1", "1")


def test_a_refused_version_is_not_promoted_but_by_an_override_that_is_recorded(
    two: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path
) -> None:
    two.register(store.another(bundle_path, tmp_path / "third"), store.REFUSED, {}, {}, [])
    with pytest.raises(GateRefusal, match="version 3 was refused"):
        rollout.promote(two, settings, "3")
    assert serving(folder) == "1"
    assert not (settings.serving_folder / routing.BUNDLES / "3").exists()
    rollout.promote(two, settings, "3", override="the floor is wrong")
    assert serving(folder) == "3"
    assert rollout.audit(settings.serving_folder)[-1]["why"] == "the floor is wrong"


def test_a_rollback_returns_to_the_version_before_and_two_in_a_hurry_do_not_roll_forward(
    two: Registry, settings: Settings, folder: Path
) -> None:
    rollout.promote(two, settings, "2")
    for _ in range(2):
        assert rollout.rollback(two, settings).number == "1"
        assert (champion(two), serving(folder)) == ("1", "1")
    rollout.promote(two, settings, "2")
    rollout.rollback(two, settings)
    told = [(entry["what"], entry["to"], entry["why"]) for entry in rollout.audit(settings.serving_folder)][-3:]
    back = ("rollback", "1", "rolled back")
    assert told == [back, ("champion", "2", "promoted"), back]


def test_without_a_version_before_there_is_nothing_to_roll_back_to(two: Registry, settings: Settings) -> None:
    with pytest.raises(ProjectError, match="there is no version to roll back to"):
        rollout.rollback(two, settings)


@pytest.mark.parametrize("damage", ["gone", "empty", "not JSON", "no pointer"])
def test_a_lost_or_damaged_serving_folder_is_restored_by_a_sync(
    two: Registry, settings: Settings, folder: Path, damage: str
) -> None:
    pointer = settings.serving_folder / routing.ROUTING
    if damage == "gone":
        shutil.rmtree(settings.serving_folder)
    elif damage == "no pointer":
        pointer.unlink()
    else:
        pointer.write_text({"empty": "", "not JSON": "{"}[damage])
    rollout.sync(two, settings, why="synced")
    assert serving(folder) == "1"


def test_a_served_bundle_that_was_changed_is_fetched_again(two: Registry, settings: Settings, folder: Path) -> None:
    (settings.serving_folder / routing.BUNDLES / "1" / bundle.MODEL).write_bytes(b"x")
    rollout.sync(two, settings, why="synced")
    assert serving(folder) == "1"


def test_old_bundles_go_but_those_in_use_stay(
    two: Registry, settings: Settings, bundle_path: Path, tmp_path: Path
) -> None:
    for number in range(3, 9):
        two.register(store.another(bundle_path, tmp_path / str(number)), store.PASSED, {}, {}, [])
        rollout.promote(two, settings, str(number))
    kept = {path.name for path in (settings.serving_folder / routing.BUNDLES).iterdir()}
    assert len(kept) == rollout.KEPT
    assert {"8", "7"} <= kept
    rollout.promote(two, settings, "1")
    kept = {path.name for path in (settings.serving_folder / routing.BUNDLES).iterdir()}
    assert {"1", "8"} <= kept
    assert len(kept) == rollout.KEPT


def test_a_second_rollout_waits_for_the_first_and_then_sees_what_it_did(
    two: Registry, settings: Settings, folder: Path
) -> None:
    started = threading.Event()

    def hold() -> None:
        with engine.exclusive(settings.serving_folder, "rollout"):
            started.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    started.wait()
    with (
        pytest.raises(Busy, match="another `rollout` is at work"),
        engine.exclusive(settings.serving_folder, "rollout"),
    ):
        pass
    rollout.promote(two, settings, "2")
    other.join()
    assert serving(folder) == "2"


def test_an_audit_line_that_a_crash_cut_off_harms_no_other(two: Registry, settings: Settings) -> None:
    with (settings.serving_folder / rollout.AUDIT).open("a") as stream:
        stream.write('{"at": "20')
    assert [entry["to"] for entry in rollout.audit(settings.serving_folder)] == ["1"]
    rollout.promote(two, settings, "2")
    assert [entry["to"] for entry in rollout.audit(settings.serving_folder)] == ["1", "2"]


def test_a_change_that_a_crash_left_without_a_record_gets_one(two: Registry, settings: Settings) -> None:
    (settings.serving_folder / rollout.AUDIT).unlink()
    rollout.sync(two, settings, why="synced")
    rollout.sync(two, settings, why="synced")
    assert [(entry["to"], entry["why"]) for entry in rollout.audit(settings.serving_folder)] == [
        ("1", "first champion")
    ]
