"""A policy acts on what lasts, once: flapping, cool-downs, missing data, other models."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core.params import Params
from flywheel_ml.core.retraining_params import ACTIONS, FINDINGS, Finding, PolicyParams
from flywheel_ml.monitoring.policy.deciding import Decision, Observation, Record, State, decide
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from library.helpers import project

START = datetime(2026, 1, 1, tzinfo=UTC)
PRESENT: State = "present"
ABSENT: State = "absent"
UNKNOWN: State = "unknown"
HOUR = timedelta(hours=1)
RETRAIN = PolicyParams(drift="retrain", windows=3, cool_down_days=7)


def play(
    states: Sequence[State],
    policy: PolicyParams,
    finding: Finding = "drift",
    digests: str = "",
    step: timedelta = HOUR,
) -> list[tuple[Decision, ...]]:
    """Decide about one window after another; `digests` has a letter for the model of each."""
    history: list[Record] = []
    for at, state in enumerate(states):
        digest = digests[at] if digests else "a"
        seen = (Observation(finding=finding, state=state, evidence="why"),)
        now = START + at * step
        made = decide(seen, history, policy, now, digest)
        history.append(
            Record(
                id=str(at), at=now, model="m 1", digest=digest, source="log", process="1@h", observations=seen,
                decisions=made,
            )
        )  # fmt: skip
    return [record.decisions for record in history]


def count(decided: list[tuple[Decision, ...]], action: str = "retrain") -> list[int]:
    """The windows in which the action was decided."""
    return [at for at, made in enumerate(decided) if any(one.action == action for one in made)]


def test_default_is_an_alert_except_for_a_canary_with_errors() -> None:
    policy = PolicyParams()
    assert {policy.get_action(name) for name in FINDINGS if name != "canary_errors"} == {"alert"}
    assert count(play([PRESENT] * 50, policy)) == []
    assert count(play([PRESENT], policy, "canary_errors"), "roll back") == [0]


def test_drift_that_lasts_retrains_once() -> None:
    assert count(play([PRESENT] * 500, RETRAIN)) == [2]


def test_drift_that_flaps_ten_times_retrains_once() -> None:
    flaps = [PRESENT, PRESENT, PRESENT, ABSENT] * 10
    assert count(play(flaps, RETRAIN)) == [2]
    assert count(play([PRESENT, ABSENT] * 10, RETRAIN.model_copy(update={"windows": 1}))) == [0]
    assert count(play([PRESENT, ABSENT] * 10, RETRAIN)) == []


def test_next_retraining_needs_a_clear_window_and_the_cool_down() -> None:
    lasts = [*[PRESENT] * 5, ABSENT, *[PRESENT] * 5]
    assert count(play(lasts, RETRAIN, step=timedelta(days=2))) == [2, 8]
    assert count(play([PRESENT] * 20, RETRAIN, step=timedelta(days=2))) == [2]


def test_windows_with_too_little_data_count_neither_way() -> None:
    assert count(play([PRESENT, UNKNOWN, PRESENT, UNKNOWN, PRESENT], RETRAIN)) == [4]
    quiet = [*[PRESENT] * 3, *[UNKNOWN] * 400, *[PRESENT] * 3]
    assert count(play(quiet, RETRAIN)) == [2]


def test_windows_of_another_model_do_not_count() -> None:
    assert count(play([PRESENT] * 4, RETRAIN, digests="aabb")) == []
    assert count(play([PRESENT] * 5, RETRAIN, digests="aabbb")) == [4]


def test_two_findings_lead_to_one_retraining() -> None:
    policy = PolicyParams(drift="retrain", degraded_quality="retrain", windows=1)
    seen = [Observation(finding=name, state="present") for name in ("drift", "degraded_quality")]
    made = decide(seen, [], policy, START, "a")
    assert [one.action for one in made] == ["retrain", "alert"]
    assert made[1].reason == "retrain was decided for drift"


def test_waiting_says_for_what() -> None:
    decided = play([*[PRESENT] * 4, ABSENT, *[PRESENT] * 3], RETRAIN)
    reasons = [made[0].reason if made else "" for made in decided]
    assert reasons[0] == "window 1 of 3 in a row before retrain"
    assert reasons[2] == "present in 3 window(s) in a row"
    assert reasons[3] == "retrain was decided; the next one needs a window without the finding first"
    assert reasons[7] == "retrain was decided on 2026-01-01 02:00 UTC; the cool-down ends 2026-01-08 02:00"


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"drift": "retrian"}, "policy.drift: no such action; did you mean 'retrain'?"),
        ({"drift": "rollback"}, "policy.drift: no such action; did you mean 'roll back'?"),
        ({"drfit": "retrain"}, "policy: no such finding 'drfit'; did you mean 'drift'?"),
        ({"cool_down": 7}, "unknown key 'policy.cool_down'; did you mean 'cool_down_days'?"),
    ],
)
def test_unknown_action_or_finding_names_the_nearest(group: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = config_model.load(project.ROOT / "params.yaml", Params).model_dump(mode="json")
    with pytest.raises(ConfigError) as error:
        config_model.parse({**content, "policy": group}, Params, name="params.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_params_without_a_policy_load(tmp_path: Path) -> None:
    content = config_model.load(project.ROOT / "params.yaml", Params).model_dump(mode="json")
    old = {name: group for name, group in content.items() if name not in ("policy", "retrain")}
    assert config_model.parse(old, Params, name="params.yaml").policy == PolicyParams()
    assert set(ACTIONS) == {"none", "alert", "retrain", "roll back"}
