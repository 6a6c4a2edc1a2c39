"""Experiments alongside the champion: start, share, abort, promote, and a kill between any two steps."""

import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout
from flywheel_ml.flows.rollout import audit, status
from flywheel_ml.model.registration.registry import CHALLENGER, Registry
from flywheel_ml.prediction_log import Prediction, Writer, new_id, now_us
from flywheel_ml.utils.errors import GateRefusal, IntegrityError, ProjectError
from library.flows.test_rollout import artifacts, champion, serving
from library.helpers import project, store
from library.helpers.commands import wait_until

Verb = Callable[[Registry, Settings], object]
START = f"""
from flywheel_ml.flows import rollout
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.core.settings import Settings
rollout.start(Registry.open(Settings.read(), {store.NAME!r}), Settings.read(), "2", 0.1)
"""


def changes(settings: Settings) -> list[tuple[str, str | None, str | None]]:
    """The record: what, from, to."""
    return [(entry["what"], entry["from"], entry["to"]) for entry in rollout.read_audit(settings.serving_folder)]


def third(registry: Registry, bundle_path: Path, tmp_path: Path) -> str:
    return registry.register(
        store.copy_with_new_card(bundle_path, tmp_path / "third"), store.PASSED_CHECKS, {}, {}, []
    ).number


def test_start_routes_share_to_challenger_and_writes_audit_log(two: Registry, settings: Settings, folder: Path) -> None:
    now = rollout.start(two, settings, None, 0.1, why="faster")
    assert now.challenger is not None
    assert (now.challenger.ref.version, now.challenger.share, now.shadow) == ("2", 0.1, None)
    assert serving_folder.read_routing(settings.serving_folder) == now
    assert bundle.verify(serving_folder.bundle_folder(settings.serving_folder, now.challenger.ref), two.get("2").digest)
    assert (champion(two), serving(folder)) == ("1", "1")
    entry = rollout.read_audit(settings.serving_folder)[-1]
    assert (entry["what"], entry["from"], entry["to"], entry["why"]) == ("challenger 10%", None, "2", "faster")
    assert entry["who"]
    assert entry["at"].endswith("+00:00")


def test_the_same_start_again_changes_nothing(two: Registry, settings: Settings) -> None:
    first = rollout.start(two, settings, None, 0.1)
    assert rollout.start(two, settings, "2", 0.1, why="again") == first
    assert rollout.sync(two, settings, why="synced") == first
    assert len(changes(settings)) == 2


def test_new_share_keeps_entities_other_changes_reassign(two: Registry, settings: Settings) -> None:
    small, large = (rollout.start(two, settings, None, share).challenger for share in (0.1, 0.5))
    shadow = rollout.start(two, settings, None, None).shadow
    rollout.abort(two, settings)
    anew = rollout.start(two, settings, None, 0.1).challenger
    assert small
    assert large
    assert shadow
    assert anew
    assert small.salt == large.salt
    assert len({small.salt, shadow.salt, anew.salt}) == 3
    whats = [what for what, _, _ in changes(settings)]
    assert whats == ["champion", "challenger 10%", "challenger 50%", "shadow", "experiment", "challenger 10%"]


SEVERAL = [("2", 0.2), ("3", 0.3)]


def test_several_versions_share_the_traffic_of_one_experiment(
    two: Registry, settings: Settings, bundle_path: Path, tmp_path: Path
) -> None:
    third(two, bundle_path, tmp_path)
    now = rollout.start_arms(two, settings, SEVERAL)
    assert [(one.ref.version, one.share) for one in now.challengers] == SEVERAL
    assert len({one.salt for one in now.challengers}) == 1
    assert rollout.start_arms(two, settings, [*reversed(SEVERAL)], why="again") == now
    assert rollout.sync(two, settings, why="synced") == now
    assert rollout.describe_routing(now) == "version 1, version 2 for 20% of the keys, version 3 for 30% of the keys"
    told = [(one.variant, one.version, one.share) for one in status.list_variant_statuses(now, settings)]
    assert told == [("champion", "1", 0.5), ("challenger", "2", 0.2), ("challenger", "3", 0.3)]
    assert changes(settings)[-1] == ("challengers 20% + 30%", None, "2, 3")
    assert rollout.abort(two, settings).challengers == ()
    assert changes(settings)[-1] == ("experiment", "2, 3", None)


def test_shares_that_change_alike_keep_keys_and_others_draw_anew(
    two: Registry, settings: Settings, bundle_path: Path, tmp_path: Path
) -> None:
    third(two, bundle_path, tmp_path)
    first = rollout.start_arms(two, settings, [("2", 0.1), ("3", 0.15)])
    doubled = rollout.start_arms(two, settings, SEVERAL)
    other = rollout.start_arms(two, settings, [("2", 0.3), ("3", 0.3)])
    salts = [now.challengers[0].salt for now in (first, doubled, other)]
    assert salts[0] == salts[1] != salts[2]


def test_promotion_of_one_of_several_needs_its_number(
    two: Registry, settings: Settings, bundle_path: Path, tmp_path: Path
) -> None:
    third(two, bundle_path, tmp_path)
    rollout.start_arms(two, settings, SEVERAL)
    with pytest.raises(ProjectError, match=r"versions 2, 3 is running; name the one to promote.*VERSION=2") as found:
        rollout.promote(two, settings, None)
    assert "\n" not in str(found.value)
    assert rollout.promote(two, settings, "3").number == "3"
    assert serving_folder.read_routing(settings.serving_folder).challengers == ()
    assert two.get_plan() is None


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([("2", 0.6), ("3", 0.5)], "add up to 110%; together they may be 100% at most"),
        ([("2", 0.1), ("2", 0.2)], "version 2 is listed twice"),
        ([("2", 0.1), ("1", 0.2)], "version 1 is already champion"),
        ([("2", 0.1), ("9", 0.2)], "9"),
        ([("2", 0.1), ("3", None)], "a shadow runs alone"),
    ],
)
def test_impossible_arms_are_refused_before_anything_changes(
    two: Registry, settings: Settings, bundle_path: Path, tmp_path: Path, arms: list[Any], message: str
) -> None:
    third(two, bundle_path, tmp_path)
    with pytest.raises(ProjectError, match=message) as found:
        rollout.start_arms(two, settings, arms)
    assert "\n" not in str(found.value)
    assert two.get_plan() is None
    assert serving_folder.read_routing(settings.serving_folder).challengers == ()


def test_an_abort_leaves_the_champion_alone_and_may_be_repeated(two: Registry, settings: Settings) -> None:
    rollout.start(two, settings, None, None)
    for _ in range(2):
        now = rollout.abort(two, settings, why="no good")
        assert (now.challenger, now.shadow, now.reason) == (None, None, "no good")
    assert two.get_plan() is None
    assert changes(settings)[-2:] == [("shadow", None, "2"), ("experiment", "2", None)]
    challenger = two.find_alias(CHALLENGER)
    assert challenger is not None
    assert challenger.number == "2"


def test_a_promotion_takes_what_is_tried_out_and_ends_that(
    two: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path
) -> None:
    rollout.start(two, settings, None, 0.1)
    # A later training makes another version challenger; the version in the experiment is promoted.
    two.set_challenger(third(two, bundle_path, tmp_path))
    assert rollout.promote(two, settings, None).number == "2"
    now = serving_folder.read_routing(settings.serving_folder)
    assert (serving(folder), now.challenger, two.get_plan()) == ("2", None, None)


def test_a_rollback_ends_what_is_tried_out(
    two: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path
) -> None:
    rollout.promote(two, settings, "2")
    rollout.start(two, settings, third(two, bundle_path, tmp_path), 0.5)
    rollout.rollback(two, settings)
    now = serving_folder.read_routing(settings.serving_folder)
    assert (serving(folder), now.challenger, two.get_plan()) == ("1", None, None)
    # Nor does it come back with the champion it was compared with.
    rollout.promote(two, settings, "2")
    assert rollout.sync(two, settings, why="synced").challenger is None


def test_a_promotion_past_the_rollout_ends_it_too(two: Registry, settings: Settings) -> None:
    rollout.start(two, settings, None, 0.1)
    two.promote("2", "1")
    now = rollout.sync(two, settings, why="trained")
    assert (now.champion and now.champion.version, now.challenger) == ("2", None)


def test_one_version_is_tried_out_at_a_time(
    two: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path
) -> None:
    other = third(two, bundle_path, tmp_path)
    answers: list[str] = []

    def begin(number: str) -> None:
        try:
            answers.append(
                rollout.describe_routing(rollout.start(Registry.open(settings, store.NAME), settings, number, 0.1))
            )
        except ProjectError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in ("2", other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if "(challenger 10%) is running since" in answer]
    assert len(refused) == 1, answers
    now = serving_folder.read_routing(settings.serving_folder)
    assert now.challenger is not None
    assert refused[0].startswith(f"an experiment with version {now.challenger.ref.version} ")
    assert len(changes(settings)) == 2


def test_what_may_not_answer_is_refused_before_anything_changes(
    two: Registry, settings: Settings, folder: Path, bundle_path: Path, tmp_path: Path
) -> None:
    two.register(store.copy_with_new_card(bundle_path, tmp_path / "refused"), store.FAILED_CHECKS, {}, {}, [])
    strange = store.copy_with_new_card(bundle_path, tmp_path / "strange")
    content = yaml.safe_load((strange / bundle.CONTRACT).read_text())
    name = Contract.load(strange / bundle.CONTRACT).inputs[0].name
    next(column for column in content["columns"] if column["name"] == name)["name"] = "unheard of"
    (strange / bundle.CONTRACT).write_text(yaml.safe_dump(content))
    bundle.write_manifest(
        strange,
        bundle.Manifest.model_validate_json((strange / bundle.MANIFEST).read_text()).model_dump(exclude={"files"}),
    )
    two.register(strange, store.PASSED_CHECKS, {}, {}, [])
    with (artifacts(folder, two, "2") / bundle.MODEL).open("ab") as stream:
        stream.write(b"x")

    before = serving_folder.read_routing(settings.serving_folder)
    for number, error, told in (
        ("1", ProjectError, "version 1 is already champion"),
        ("2", IntegrityError, "model.onnx was changed"),
        ("3", GateRefusal, "version 3 was refused"),
        ("4", ProjectError, "needs the column 'unheard of', which the champion's contract does not have"),
        ("9", ProjectError, "has no version '9'"),
    ):
        with pytest.raises(error, match=told):
            rollout.start(two, settings, number, 0.1)
        with pytest.raises(error, match=told):
            rollout.start_arms(two, settings, [(number, 0.1), ("8", 0.1)])
        assert (serving_folder.read_routing(settings.serving_folder), two.get_plan()) == (before, None)


def test_every_folder_that_follows_the_registry_shares_out_alike(
    two: Registry, settings: Settings, folder: Path
) -> None:
    now = rollout.start(two, settings, None, 0.25)
    other = settings.model_copy(update={"serving_folder": folder / "elsewhere" / "serving"})
    assert rollout.sync(two, other, why="synced").challenger == now.challenger
    shutil.rmtree(settings.serving_folder)
    assert rollout.sync(two, settings, why="synced").challenger == now.challenger


def test_sidecar_survives_unavailable_registry_and_follows_again(
    two: Registry, settings: Settings, folder: Path
) -> None:
    other = settings.model_copy(update={"serving_folder": folder / "elsewhere" / "serving"})
    answers: list[Registry | OSError] = [OSError("connection refused"), OSError("connection refused"), two]
    lines: list[str] = []

    def connect() -> Registry:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    class Enough(BaseException):
        pass

    def tell(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            assert not other.serving_folder.exists()
        if len(lines) == 2:
            rollout.start(two, settings, None, 0.1)
        if len(lines) == 3:
            raise Enough

    with pytest.raises(Enough):
        rollout.sync_forever(connect, other, 0.01, tell)
    assert lines == [
        "the serving folder is unchanged: connection refused",
        "the serving folder holds version 1",
        "the serving folder holds version 1, version 2 for 10% of the keys",
    ]


@pytest.mark.chaos
def test_sidecar_follows_quickly_and_ends_on_sigterm(two: Registry, settings: Settings, folder: Path) -> None:
    shutil.copyfile(project.ROOT / "contract.yaml", folder / "contract.yaml")
    contract = yaml.safe_load((folder / "contract.yaml").read_text())
    (folder / "contract.yaml").write_text(yaml.safe_dump({**contract, "name": store.NAME}))
    elsewhere = folder / "elsewhere" / "serving"
    words = ("-m", project.PACKAGE, "rollout", "sync", "--watch", "--every", "0.1")
    with project.start(folder, *words, ML_SERVING_FOLDER=str(elsewhere)) as sidecar:
        assert sidecar.stdout is not None
        assert sidecar.stdout.readline().strip().endswith("the serving folder holds version 1")
        rollout.promote(two, settings, "2")
        wait_until(
            lambda: (
                (now := serving_folder.read_routing(elsewhere)).champion is not None and now.champion.version == "2"
            ),
            10,
        )
        sidecar.send_signal(signal.SIGTERM)
        _, errors = sidecar.communicate(timeout=20)
    assert (sidecar.returncode, errors) == (0, "")


def test_status_counts_each_variant_since_its_start(two: Registry, settings: Settings, folder: Path) -> None:
    settings = settings.model_copy(update={"prediction_log": str(folder / "log")})
    row = Prediction("", now_us(), None, None, "champion", "1", None, "{}", "{}", 0.5, 1000, degraded=False)
    with Writer(settings.prediction_log, "serve") as writer:
        writer.append([row._replace(id=new_id())]).result()  # Before it began.
        time.sleep(0.01)
        now = rollout.start(two, settings, None, 0.25)
        answered = [("champion", "1"), ("champion", "1"), ("challenger", "2"), ("fallback", "1")]
        writer.append(
            [
                row._replace(
                    id=new_id(), timestamp_us=now_us(), variant=variant, model_version=version, score=number / 4
                )
                for number, (variant, version) in enumerate(answered)
            ]
        ).result()
    found = status.list_variant_statuses(now, settings)
    told = [(one.variant, one.version, one.share, one.tally.rows if one.tally else 0) for one in found]
    assert told == [("champion", "1", 0.75, 2), ("challenger", "2", 0.25, 1), ("fallback", "1", None, 1)]
    assert found[0].tally is not None
    assert (found[0].tally.mean_score, found[0].tally.mean_latency_us) == (0.125, 1000)
    assert status.describe_breakers(now, "http://127.0.0.1:1", settings)[0].startswith(
        "unknown: http://127.0.0.1:1 does not answer"
    )


class Cut(NamedTuple):
    """A verb, what had been done before, and the call at which it ends."""

    verb: Verb
    before: Verb | None
    at: str


class Killed(BaseException):
    """Ends a verb at a call, with nothing done after it."""


def start(registry: Registry, settings: Settings) -> object:
    return rollout.start(registry, settings, "2", 0.1)


def promote(registry: Registry, settings: Settings) -> object:
    return rollout.promote(registry, settings, None)


CUTS = [
    *(
        Cut(start, None, at)
        for at in (
            "Registry.set_challenger",
            "Registry.set_plan",
            "serving_folder.write_routing",
            "audit.append_entry",
        )
    ),
    *(
        Cut(rollout.abort, start, at)
        for at in ("Registry.set_plan", "serving_folder.write_routing", "audit.append_entry")
    ),
    *(Cut(promote, start, at) for at in ("Registry.set_plan", "serving_folder.write_routing", "audit.append_entry")),
    *(Cut(rollout.rollback, promote, at) for at in ("serving_folder.write_routing", "audit.append_entry")),
]
BEFORE, BESIDE, AFTER = "version 1", "version 1, version 2 for 10% of the keys", "version 2"
ENDS: dict[Verb, tuple[str, str, str | None, list[str]]] = {
    start: (BESIDE, "1", "2", ["champion", "challenger 10%"]),
    rollout.abort: (BEFORE, "1", None, ["champion", "challenger 10%", "experiment"]),
    promote: (AFTER, "2", None, ["champion", "challenger 10%", "champion"]),
    rollout.rollback: (BEFORE, "1", None, ["champion", "champion", "rollback"]),
}
"""What answers, the registry's champion, its plan and the record, once a verb has ended."""


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.verb.__name__} at {cut.at}")
def test_interrupted_verb_keeps_serving_and_repeat_completes_it(
    two: Registry, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch, cut: Cut
) -> None:
    if cut.before:
        cut.before(two, settings)
    before = rollout.describe_routing(serving_folder.read_routing(settings.serving_folder))
    owner, name = cut.at.split(".")
    pointer = serving_folder.read_routing(settings.serving_folder).updated_at

    def kill(*arguments: Any, **_: Any) -> None:
        # The audit entry of an earlier change is not a step of this one.
        if name != "append_entry" or arguments[1].updated_at != pointer:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr({"Registry": Registry, "serving_folder": serving_folder, "audit": audit}[owner], name, kill)
        with pytest.raises(Killed):
            cut.verb(two, settings)
    after, champion_then, plan, whats = ENDS[cut.verb]
    assert rollout.describe_routing(serving_folder.read_routing(settings.serving_folder)) == (
        after if name == "append_entry" else before
    )
    assert serving(folder) in {"1", "2"}

    cut.verb(two, settings)
    assert rollout.describe_routing(serving_folder.read_routing(settings.serving_folder)) == after
    assert champion(two) == champion_then
    assert (two.get_plan() or {}).get("version") == plan
    assert [what for what, _, _ in changes(settings)] == whats


@pytest.mark.chaos
def test_a_killed_start_is_completed_by_the_next(two: Registry, settings: Settings, folder: Path) -> None:
    killed = project.run(folder, "-c", START, PYTHONPATH=str(project.AUDIT_HOOK), AUDIT_KILL=r"os.rename:routing\.json")
    assert killed.returncode == -signal.SIGKILL
    assert rollout.describe_routing(serving_folder.read_routing(settings.serving_folder)) == BEFORE
    assert project.leftovers(settings.serving_folder)
    start(two, settings)
    assert rollout.describe_routing(serving_folder.read_routing(settings.serving_folder)) == BESIDE
    assert project.leftovers(settings.serving_folder) == []
