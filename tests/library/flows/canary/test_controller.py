"""A ramp goes through all steps or back, and a challenger of any kind ends where it belongs."""

import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core import serving_folder
from flywheel_ml.flows import rollout
from flywheel_ml.flows.canary import controller, starting
from flywheel_ml.flows.retraining.policy import FILE
from flywheel_ml.model.registration.registry import CHALLENGER, CHAMPION
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.prediction_log import Reader
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.operations import Operation
from flywheel_ml.utils.errors import ProjectError
from library.flows.canary.conftest import Canary
from library.helpers.project import PROJECT


def get_champion(canary: Canary) -> str:
    found = canary.registry.find_alias(CHAMPION)
    assert found is not None
    return found.number


def describe(canary: Canary) -> str:
    return rollout.describe_routing(serving_folder.read_routing(canary.settings.serving_folder))


def test_good_challenger_goes_through_all_steps(canary: Canary) -> None:
    canary.start()
    routed, actions = [], []
    for _ in range(4):
        routed.append(describe(canary))
        canary.send(rows=4000)
        actions.append(canary.look().action)
    assert actions == ["advance", "advance", "advance", "promote"]
    assert [one.removeprefix("version 1, version 2 ") for one in routed] == [
        "as shadow",
        "for 5% of the keys",
        "for 25% of the keys",
        "for 50% of the keys",
    ]
    assert (get_champion(canary), describe(canary), canary.plan) == ("2", "version 2", None)
    found = decisions.read(FILE)
    assert [(one.step, one.action) for one in found.canaries] == [
        ("shadow", "advance"),
        ("5.0%", "advance"),
        ("25.0%", "advance"),
        ("50.0%", "promote"),
    ]
    assert [one.text for one in found.outcomes] == [
        "version 2 answers 5%",
        "version 2 answers 25%",
        "version 2 answers 50%",
        "version 2 is champion",
    ]
    last = found.canaries[-1]
    assert [one["challenger"]["rows"] for one in last.evidence] == [4000, 200, 1000, 2000]
    assert last.interval is not None
    assert last.alpha == pytest.approx(0.05)
    why = rollout.read_audit(canary.settings.serving_folder)[-1]["why"]
    assert why.startswith("canary: promote: loss ")


@pytest.mark.parametrize(
    ("traffic", "finding"),
    [
        ({"worse": 40, "better": 0}, "it is worse than the champion"),
        ({"failed": 4}, "errors: in step shadow, 40 of its 1,000 rows failed, 0 of the champion's 1,000"),
    ],
    ids=["poisoned", "broken"],
)
def test_bad_shadow_is_rolled_back(canary: Canary, traffic: dict[str, Any], finding: str) -> None:
    canary.start().send(**traffic)
    found = canary.look()
    assert (found.action, found.is_over) == ("roll back", True)
    assert finding in found.reason
    assert (get_champion(canary), describe(canary), canary.plan) == ("1", "version 1", None)
    assert canary.registry.find_alias(CHALLENGER) is None
    with pytest.raises(ProjectError, match=r"there is no challenger: .*version 2 was rolled back by .*canary: roll"):
        canary.start()


@pytest.mark.parametrize(
    ("traffic", "finding"),
    [
        ({"failed": 50}, "errors: in step 5.0%"),
        ({"latency_us": 3_000_000}, "latency: in step 5.0%"),
    ],
    ids=["broken", "slow"],
)
def test_bad_step_is_rolled_back(canary: Canary, traffic: dict[str, Any], finding: str) -> None:
    canary.start().send()
    assert canary.look().action == "advance"
    canary.send(**traffic)
    found = canary.look()
    assert found.action == "roll back"
    assert finding in found.reason
    assert describe(canary) == "version 1"


def test_version_that_went_back_may_be_tried_again(canary: Canary) -> None:
    canary.with_canary(shares=(0.5,))
    canary.registry.reject("2", "canary: roll back: errors")
    starting.start(PROJECT, canary.settings, canary.params, "2")
    canary.send()
    assert canary.look().action == "advance"
    canary.send(rows=2000)
    assert canary.look().is_over
    assert get_champion(canary) == "2"


def test_wrong_share_is_rolled_back(canary: Canary) -> None:
    canary.start().send()
    canary.look()
    canary.send(sent_percent=30)
    found = canary.look()
    assert (found.action, found.reason.partition(":")[0]) == ("roll back", "sample ratio")


def test_silent_and_unlabelled_challengers_are_held(canary: Canary) -> None:
    canary.start()
    canary.now += timedelta(minutes=1)
    silent = canary.look()
    assert (silent.action, silent.reason) == ("hold", "no traffic reaches the challenger in step shadow")
    canary.send(labelled=False)
    unlabelled = canary.look()
    assert (unlabelled.action, unlabelled.reason) == ("hold", "no labels have arrived in step shadow")
    assert describe(canary) == "version 1, version 2 as shadow"
    assert [one.action for one in decisions.read(FILE).canaries] == ["hold"], "the same again is not news"


def test_undecided_challenger_expires_at_the_deadline(canary: Canary) -> None:
    canary.start().send(rows=300)
    assert canary.look().action == "continue"
    canary.now += timedelta(days=14)
    found = canary.look()
    assert (found.action, found.is_over) == ("expire", True)
    assert found.reason.startswith("not decided within 14 days, so not promoted: ")
    assert (get_champion(canary), describe(canary)) == ("1", "version 1")


def test_promotion_and_rollback_wait_for_approval(canary: Canary) -> None:
    canary.with_canary(promotion="approve", rollback="approve", shares=(0.5,)).start().send()
    with pytest.raises(ProjectError, match="nothing waits for an approval: advance"):
        canary.look(approve=True)
    assert canary.look().action == "advance"
    canary.send(rows=2000)
    for _ in range(2):
        found = canary.look()
        assert (found.action, found.waits, found.is_over) == ("promote", True, False)
    assert get_champion(canary) == "1"
    assert canary.look(approve=True).is_over
    assert get_champion(canary) == "2"
    records = decisions.read(FILE).canaries
    assert [(one.action, one.waits) for one in records] == [("advance", False), ("promote", True), ("promote", False)]


def test_approval_is_for_the_decision_that_was_seen(canary: Canary) -> None:
    policy = canary.params.policy.model_copy(update={"canary_errors": "alert"})
    canary.params = canary.params.model_copy(update={"policy": policy})
    canary.with_canary(promotion="approve", rollback="approve", shares=(0.5,)).start().send()
    canary.look()
    canary.send(rows=2000)
    assert canary.look().action == "promote"
    canary.send(failed=50)
    with pytest.raises(ProjectError, match=r"that waited was promote, and by now it is roll back: errors: .* again"):
        canary.look(approve=True)
    assert describe(canary) == "version 1, version 2 for 50% of the keys"
    assert canary.look(approve=True).action == "roll back"
    assert describe(canary) == "version 1"


def test_rollback_that_waits_stays_decided(canary: Canary) -> None:
    """Later rows that make up for earlier ones would move the test past its first crossing."""
    canary.with_canary(rollback="approve").start().send(worse=40, better=0)
    seen = canary.look()
    assert (seen.action, seen.waits) == ("roll back", True)
    canary.send(rows=20_000)
    found = canary.look()
    assert (found.action, found.waits, found.reason) == ("roll back", True, seen.reason)
    assert canary.look(approve=True).is_over
    assert (get_champion(canary), describe(canary)) == ("1", "version 1")


def test_rows_that_were_pruned_during_a_canary_hold_it(canary: Canary) -> None:
    canary.start().send()
    assert canary.look().action == "advance"
    ended = canary.ramp.steps[0].until
    assert ended is not None
    canary.send(rows=4000)
    log = Log(canary.settings.prediction_log, Path("spool"), Path("exports"))
    erased = [row.prediction.id for row in itertools.islice(Reader(log.target).predictions(), 10)]
    log.change(Operation(kind="delete", ids={"predictions": erased}))
    assert controller.inspect(PROJECT, canary.settings, canary.params, canary.now).action == "advance"
    log.change(Operation(kind="prune", until_us=int(ended.timestamp() * 1e6)))
    found = canary.look()
    assert (found.action, found.reason) == (
        "hold",
        "of the 2,000 rows that an earlier look counted in step shadow, the log has 0 left; "
        "nothing is decided until the counts are right",
    )
    assert describe(canary) == "version 1, version 2 for 5% of the keys"


def test_errors_are_rolled_back_unless_the_policy_says_otherwise(canary: Canary) -> None:
    canary.with_canary(rollback="approve").start().send(failed=10)
    policy = canary.params.policy.model_copy(update={"canary_errors": "alert"})
    default, canary.params = canary.params, canary.params.model_copy(update={"policy": policy})
    assert canary.look().waits
    assert describe(canary) == "version 1, version 2 as shadow"
    canary.params = default
    assert canary.look().is_over


def test_two_ramps_cannot_run_at_once(canary: Canary) -> None:
    canary.start()
    with pytest.raises(ProjectError, match=r"an experiment with version 2 \(shadow\) is running since .*make abort"):
        canary.start()


def test_experiment_without_a_ramp_is_left_alone(canary: Canary) -> None:
    """Plans of older versions have no ramp; an experiment that a person started has none either."""
    rollout.start(canary.registry, canary.settings, "2", 0.1)
    plan = canary.registry.get_plan()
    assert "ramp" not in plan
    found = canary.look()
    assert found.reason == "an experiment with version 2 (challenger 10%) is running, and it is no canary"
    assert describe(canary) == "version 1, version 2 for 10% of the keys"
    with pytest.raises(ProjectError, match="nothing waits for an approval: an experiment"):
        canary.look(approve=True)
    assert rollout.sync(canary.registry, canary.settings, why="synced").challengers


def test_share_of_a_canary_is_not_set_by_hand(canary: Canary) -> None:
    canary.start()
    before = canary.registry.get_plan()
    for arms in ([("2", 0.5)], [("2", 0.2), ("9", 0.2)]):
        with pytest.raises(ProjectError, match=r"a canary with version 2 \(shadow\) is running since .*rollout abort"):
            rollout.start_arms(canary.registry, canary.settings, arms)
    assert canary.registry.get_plan() == before


def test_inspection_changes_nothing(canary: Canary) -> None:
    canary.start().send()
    found = controller.inspect(PROJECT, canary.settings, canary.params, canary.now)
    assert found.action == "advance"
    assert describe(canary) == "version 1, version 2 as shadow"
    assert not FILE.exists()


def test_ramp_keeps_the_plan_that_it_began_with(canary: Canary) -> None:
    canary.start().send()
    canary.with_canary(shares=(0.4,), max_loss_increase=0.9)
    canary.look()
    assert canary.ramp.current.share == 0.05
    assert json.loads(json.dumps(canary.registry.get_plan()))["ramp"]["plan"]["deadline_days"] == 14.0


def test_loss_of_another_task_is_rejected(canary: Canary) -> None:
    canary.with_canary(loss="squared")
    with pytest.raises(ProjectError, match=r"canary.loss is squared, and the target is for log or zero_one"):
        starting.start(PROJECT, canary.settings, canary.params)
