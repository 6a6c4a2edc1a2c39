"""The serving folder follows the registry, in steps of which each leaves a folder that serves."""

import shutil
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout, training
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.model.registration.registry import CHALLENGER, CHAMPION, Registry
from flywheel_ml.prediction_log import Prediction, Writer, new_id
from flywheel_ml.utils.errors import Busy, GateRefusal, IntegrityError, ProjectError
from library.helpers import project, store
from library.helpers.commands import find_served_bundle

PROMOTE = f"""
from flywheel_ml.flows import rollout
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.core.settings import Settings
rollout.promote(Registry.open(Settings.read(), {store.NAME!r}), Settings.read(), "2")
"""


def serving(folder: Path) -> str:
    """The version that servers answer with; its bundle is whole."""
    now = serving_folder.read_routing(folder / "var" / "serving")
    assert now.champion is not None
    bundle.verify(serving_folder.bundle_folder(folder / "var" / "serving", now.champion), now.champion.digest)
    return now.champion.version


def champion(registry: Registry) -> str:
    found = registry.find_alias(CHAMPION)
    assert found is not None
    return found.number


def artifacts(folder: Path, registry: Registry, number: str) -> Path:
    """Where the registry keeps a version's bundle."""
    digest = registry.get(number).digest
    found = [path.parent for path in (folder / "mlartifacts").rglob(bundle.LINEAGE) if digest in path.read_text()]
    return found[0]


def test_promotion_serves_the_version_and_writes_audit_log(two: Registry, settings: Settings, folder: Path) -> None:
    assert rollout.promote(two, settings, None).number == "2"
    assert (champion(two), serving(folder)) == ("2", "2")
    assert two.find_alias(CHALLENGER) is None
    entry = rollout.read_audit(settings.serving_folder)[-1]
    assert (entry["what"], entry["from"], entry["to"], entry["why"]) == ("champion", "1", "2", "promoted")
    assert entry["who"]
    assert entry["at"].endswith("+00:00")


def test_a_sync_repeated_changes_nothing(two: Registry, settings: Settings) -> None:
    before = (settings.serving_folder / serving_folder.ROUTING).stat().st_mtime_ns
    now = rollout.sync(two, settings, why="again")
    assert now.reason == "first champion"
    assert (settings.serving_folder / serving_folder.ROUTING).stat().st_mtime_ns == before
    assert len(rollout.read_audit(settings.serving_folder)) == 1


def test_without_a_champion_there_is_nothing_to_roll_out(registry: Registry, settings: Settings) -> None:
    with pytest.raises(ProjectError, match="the registry has no champion"):
        rollout.sync(registry, settings, why="x")
    with pytest.raises(ProjectError, match="there is no challenger; name a version"):
        rollout.promote(registry, settings, None)


@pytest.mark.chaos
def test_killed_promotion_keeps_old_champion_and_repeat_completes(
    two: Registry, settings: Settings, folder: Path
) -> None:
    killed = project.run(
        folder, "-c", PROMOTE, PYTHONPATH=str(project.AUDIT_HOOK), AUDIT_KILL=r"os.rename:routing\.json"
    )
    assert killed.returncode == -9
    assert serving(folder) == "1"
    assert bundle.verify(find_served_bundle(settings.serving_folder, "2"))
    assert project.leftovers(settings.serving_folder)
    rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("2", "2")
    assert [entry["to"] for entry in rollout.read_audit(settings.serving_folder)] == ["1", "2"]
    assert project.leftovers(settings.serving_folder) == []


def test_a_tampered_artifact_is_refused_and_nothing_changes(two: Registry, settings: Settings, folder: Path) -> None:
    with (artifacts(folder, two, "2") / bundle.MODEL).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityError, match=r"model.onnx was changed after its manifest was written"):
        rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("1", "1")
    assert project.leftovers(settings.serving_folder) == []


def test_a_bundle_swapped_for_another_is_refused(two: Registry, settings: Settings, folder: Path) -> None:
    target = artifacts(folder, two, "2")
    shutil.copytree(artifacts(folder, two, "1"), target, dirs_exist_ok=True)
    with pytest.raises(IntegrityError, match=r"manifest.json was changed after it was registered"):
        rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("1", "1")


def test_missing_artifacts_leave_registry_and_folder_unchanged(two: Registry, settings: Settings, folder: Path) -> None:
    shutil.rmtree(folder / "mlartifacts")
    with pytest.raises(ProjectError, match="cannot be downloaded"):
        rollout.promote(two, settings, "2")
    assert (champion(two), serving(folder)) == ("1", "1")


def test_refused_version_is_promoted_only_by_recorded_override(
    two: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path
) -> None:
    two.register(store.copy_with_new_card(bundle_path, tmp_path / "third"), store.FAILED_CHECKS, {}, {}, [])
    with pytest.raises(GateRefusal, match="version 3 was refused"):
        rollout.promote(two, settings, "3")
    assert serving(folder) == "1"
    assert not list((settings.serving_folder / serving_folder.BUNDLES).glob("3-*"))
    rollout.promote(two, settings, "3", override="the floor is wrong")
    assert serving(folder) == "3"
    assert rollout.read_audit(settings.serving_folder)[-1]["why"] == "the floor is wrong"


def test_rollback_restores_previous_and_repeat_has_no_effect(two: Registry, settings: Settings, folder: Path) -> None:
    rollout.promote(two, settings, "2")
    for _ in range(2):
        assert rollout.rollback(two, settings).number == "1"
        assert (champion(two), serving(folder)) == ("1", "1")
    rollout.promote(two, settings, "2")
    rollout.rollback(two, settings)
    told = [(entry["what"], entry["to"], entry["why"]) for entry in rollout.read_audit(settings.serving_folder)][-3:]
    back = ("rollback", "1", "rolled back")
    assert told == [back, ("champion", "2", "promoted"), back]


def test_without_a_version_before_there_is_nothing_to_roll_back_to(two: Registry, settings: Settings) -> None:
    with pytest.raises(ProjectError, match="there is no previous champion to roll back to"):
        rollout.rollback(two, settings)


@pytest.mark.parametrize("damage", ["gone", "empty", "not JSON", "no pointer"])
def test_a_lost_or_damaged_serving_folder_is_restored_by_a_sync(
    two: Registry, settings: Settings, folder: Path, damage: str
) -> None:
    pointer = settings.serving_folder / serving_folder.ROUTING
    if damage == "gone":
        shutil.rmtree(settings.serving_folder)
    elif damage == "no pointer":
        pointer.unlink()
    else:
        pointer.write_text({"empty": "", "not JSON": "{"}[damage])
    rollout.sync(two, settings, why="synced")
    assert serving(folder) == "1"


def test_a_served_bundle_that_was_changed_is_fetched_again(two: Registry, settings: Settings, folder: Path) -> None:
    (find_served_bundle(settings.serving_folder, "1") / bundle.MODEL).write_bytes(b"x")
    rollout.sync(two, settings, why="synced")
    assert serving(folder) == "1"


def kept(settings: Settings) -> set[str]:
    """The versions whose bundles the serving folder has."""
    return {path.name.partition("-")[0] for path in (settings.serving_folder / serving_folder.BUNDLES).iterdir()}


def stored(folder: Path, registry: Registry) -> set[str]:
    """The versions whose files the artifact store has."""
    runs = {version.run_id: version.number for version in registry.list_versions()}
    return {runs[path.parents[1].name] for path in (folder / "mlartifacts").glob("*/artifacts/model")}


@pytest.fixture(scope="module")
def six(rolled_out: Path, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 6, promoted one after the other; 2 is in the log by its digest, 1 by its version alone."""
    path = shutil.copytree(rolled_out, tmp_path_factory.mktemp("six") / "project")
    settings = store.settings(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        registry = Registry.open(settings, store.NAME)
        for number in range(3, 7):
            registry.register(
                store.copy_with_new_card(bundle_path, path.with_name(str(number))), store.PASSED_CHECKS, {}, {}, []
            )
        facts = ("{}", "{}", 0.5, 1, False)
        rows = [
            Prediction(new_id(), 1, None, None, "champion", "9", registry.get("2").digest, *facts),
            Prediction(new_id(), 1, None, None, "champion", "1", None, *facts),
        ]
        with Writer(settings.prediction_log, "serve") as log:
            log.append(rows).result(10)
        for number in range(2, 7):
            rollout.promote(registry, settings, str(number))
    return path


@pytest.fixture
def many(six: Path, folder: Path) -> Registry:
    """The registry with six versions, moved into the current folder."""
    shutil.copytree(six, folder, dirs_exist_ok=True)
    return Registry.open(store.settings(folder), store.NAME)


@pytest.fixture
def few(settings: Settings) -> Settings:
    return settings.model_copy(update={"keep_versions": 2})


def test_prune_keeps_versions_in_use_or_in_the_log(
    many: Registry, settings: Settings, few: Settings, folder: Path
) -> None:
    rollout.prune(many, settings)
    assert kept(settings) == stored(folder, many) == {"1", "2", "3", "4", "5", "6"}
    rollout.start(many, few, "3", None)
    assert kept(few) == stored(folder, many) == {"1", "2", "3", "5", "6"}
    shutil.rmtree(folder / "var" / "log")
    rollout.prune(many, few)
    assert kept(few) == stored(folder, many) == {"3", "5", "6"}
    rollout.promote(many, few, "5")
    assert kept(few) == stored(folder, many) == {"3", "5", "6"}, "3 still is the challenger"
    assert len(many.list_versions()) == 6, "their record stays"


def test_nothing_is_pruned_while_the_log_cannot_be_read(many: Registry, few: Settings) -> None:
    rollout.prune(many, few.model_copy(update={"prediction_log": "postgresql://127.0.0.1:1/log"}))
    assert kept(few) == {"1", "2", "3", "4", "5", "6"}


def test_pruned_version_is_reported_and_restored_by_training(
    many: Registry, few: Settings, folder: Path, six: Path
) -> None:
    rollout.prune(many, few)
    with pytest.raises(ProjectError, match=r"the files of version 4 were removed on 20.* \(ML_KEEP_VERSIONS is 10\)"):
        rollout.promote(many, few, "4")
    assert serving(folder) == "6"
    many.restore_files(many.get("4"), six.with_name("4"), {})
    assert rollout.promote(many, few, "4").number == "4"
    assert serving(folder) == "4"
    shutil.rmtree(folder / "mlartifacts")
    many.restore_files(many.get("4"), six.with_name("4"), {})
    assert stored(folder, many) == {"4"}, "as where all artifacts are lost"


def test_a_kill_while_pruning_leaves_whole_bundles_only(
    many: Registry, few: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rollout.prune(many, few)
    bundles = few.serving_folder / serving_folder.BUNDLES
    assert len([bundle.verify(path) for path in bundles.glob("[!.]*")]) == 5
    rollout.prune(many, few)
    rollout.sync(many, few, why="synced")
    assert kept(few) == stored(folder, many) == {"1", "2", "5", "6"}
    assert project.leftovers(few.serving_folder) == []


# A registry that was lost counts its versions from 1 again, and knows no champion.


@pytest.fixture
def lost(many: Registry, settings: Settings, folder: Path) -> Registry:
    """A new registry next to a serving folder whose champion is version 6, version 5 being the one before."""
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlartifacts")
    (folder / "mlflow.db").symlink_to(folder / "another.db")  # MLflow keeps one connection to each address.
    return Registry.open(settings.model_copy(update={"tracking_uri": f"sqlite:///{folder}/another.db"}), store.NAME)


def test_a_lost_registry_begins_with_the_champion_that_serves(
    lost: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path, params: Params
) -> None:
    before = serving_folder.read_routing(settings.serving_folder)
    assert before.champion is not None
    assert before.previous is not None
    told = rollout.recover(lost, settings)
    assert told == "the registry was lost: version 6 still serves, and is registered as 2"
    assert lost.find_alias(CHAMPION) == lost.get("2")
    assert lost.get("2").digest == before.champion.digest
    assert rollout.recover(lost, settings) == ""
    rejected = lost.register(store.copy_with_new_card(bundle_path, tmp_path / "worse"), store.FAILED_CHECKS, {}, {}, [])
    assert training.assign_role(lost, rejected, params) == "refused"
    now = rollout.sync(lost, settings, why="trained")
    assert (now.champion, now.previous) == (before.champion.model_copy(update={"version": "2"}), before.previous)
    assert serving(folder) == "2"
    assert rollout.rollback(lost, settings).digest == before.previous.digest
    assert serving(folder) == "1"


def test_a_number_that_repeats_overwrites_no_bundle(
    lost: Registry, settings: Settings, bundle_path: Path, tmp_path: Path
) -> None:
    bundles = settings.serving_folder / serving_folder.BUNDLES
    before = {path: bundle.verify(path) for path in bundles.iterdir()}
    other = lost.register(store.copy_with_new_card(bundle_path, tmp_path / "other"), store.PASSED_CHECKS, {}, {}, [])
    rollout.promote(lost, settings, other.number)
    assert before.items() <= {path: bundle.verify(path) for path in bundles.iterdir()}.items()
    assert len(list(bundles.glob("1-*"))) == 2


def test_a_champion_that_cannot_be_registered_again_ends_the_run(lost: Registry, settings: Settings) -> None:
    (find_served_bundle(settings.serving_folder, "6") / bundle.MODEL).write_bytes(b"x")
    message = r"the registry has no champion, .*model.onnx was changed.*; restore the registry from a backup, or move"
    with pytest.raises(ProjectError, match=message):
        rollout.recover(lost, settings)
    assert lost.list_versions() == [] or lost.find_alias(CHAMPION) is None


def test_a_serving_folder_of_another_model_is_no_champion_here(lost: Registry, settings: Settings) -> None:
    now = serving_folder.read_routing(settings.serving_folder)
    serving_folder.write_routing(settings.serving_folder, now.model_copy(update={"name": "another"}))
    assert rollout.recover(lost, settings) == ""
    assert lost.list_versions() == []


def test_a_bundle_of_the_former_layout_serves_on(two: Registry, settings: Settings, folder: Path) -> None:
    path = find_served_bundle(settings.serving_folder, "1")
    path.rename(path.with_name("1"))
    assert serving(folder) == "1"
    rollout.sync(two, settings, why="synced")
    assert kept(settings) == {"1"}
    assert serving_folder.find_bundle(settings.serving_folder, two.get("1").digest) == path.with_name("1")


def test_second_rollout_waits_for_the_first(two: Registry, settings: Settings, folder: Path) -> None:
    started = threading.Event()

    def hold() -> None:
        with engine.lock_project(settings.serving_folder, "rollout"):
            started.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    started.wait()
    with (
        pytest.raises(Busy, match="another `rollout` is running"),
        engine.lock_project(settings.serving_folder, "rollout"),
    ):
        pass
    rollout.promote(two, settings, "2")
    other.join()
    assert serving(folder) == "2"


def test_an_audit_line_that_a_crash_cut_off_harms_no_other(two: Registry, settings: Settings) -> None:
    with (settings.serving_folder / rollout.AUDIT_FILE).open("a") as stream:
        stream.write('{"at": "20')
    assert [entry["to"] for entry in rollout.read_audit(settings.serving_folder)] == ["1"]
    rollout.promote(two, settings, "2")
    assert [entry["to"] for entry in rollout.read_audit(settings.serving_folder)] == ["1", "2"]


def test_a_change_that_a_crash_left_without_a_record_gets_one(two: Registry, settings: Settings) -> None:
    (settings.serving_folder / rollout.AUDIT_FILE).unlink()
    rollout.sync(two, settings, why="synced")
    rollout.sync(two, settings, why="synced")
    assert [(entry["to"], entry["why"]) for entry in rollout.read_audit(settings.serving_folder)] == [
        ("1", "first champion")
    ]
