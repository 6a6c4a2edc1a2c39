"""Errors of an experiment are a finding of the hourly policy, and the policy is reached although alerts are not."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.core.retraining_params import PolicyParams
from flywheel_ml.experiments.evidence import AlphaBudget
from flywheel_ml.experiments.guards import log_errors
from flywheel_ml.flows import rollout
from flywheel_ml.flows.canary.errors import build_rule, find_errors
from flywheel_ml.flows.retraining import policy
from flywheel_ml.model.registration.registry import CHALLENGER
from flywheel_ml.monitoring.alerting.delivery import AlertError
from flywheel_ml.monitoring.alerting.rules import build_alerts, can_end
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.monitoring.policy.deciding import Record, decide, observe
from flywheel_ml.monitoring.result import Result, evaluate_window
from flywheel_ml.monitoring.window import count_nothing
from flywheel_ml.prediction_log import Prediction, Writer
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from library.flows.canary.conftest import Canary
from library.helpers import store
from library.helpers.canaries import Traffic
from library.helpers.project import PROJECT


@pytest.fixture
def result(bundle_path: Any, params: Params) -> Result:
    """A window in which nothing else is found."""
    opened = Bundle.open(bundle_path, features=PROJECT.features)
    return evaluate_window(count_nothing(opened, (), "prediction log", "now"), opened, params, datetime.now(UTC))


def send_past(canary: Canary, failed: int) -> None:
    """Log traffic between the start of the experiment and now; its rows are a microsecond apart."""
    digests = (canary.registry.get("1").digest, canary.registry.get("2").digest)
    since = datetime.fromisoformat(rollout.read_audit(canary.settings.serving_folder)[-1]["at"])
    rows = Traffic(*digests, 0, rows=400, failed=failed, labelled=False).share(50)
    placed = [row._replace(timestamp_us=int(since.timestamp() * 1e6) + at) for at, row in enumerate(rows)]
    with Writer(canary.settings.prediction_log, "serve") as writer:
        writer.append(placed).result(30)


def test_errors_of_an_experiment_end_it_in_the_first_window(canary: Canary, result: Result) -> None:
    now = datetime.now(UTC)
    assert find_errors(canary.settings, canary.params, now) == ""
    rollout.start(canary.registry, canary.settings, "2", 0.5)
    send_past(canary, failed=0)
    assert find_errors(canary.settings, canary.params, now + timedelta(minutes=1)) == ""
    send_past(canary, failed=20)  # 40 rows; their entities have another row, which was answered.
    found = policy.apply_policy(PROJECT, canary.settings, canary.params, result)
    assert [(one.finding, one.action) for one in found.record.decisions] == [("canary_errors", "roll back")]
    assert [(one.succeeded, one.text) for one in found.outcomes] == [(True, "the experiment with version 2 was ended")]
    audit = rollout.read_audit(canary.settings.serving_folder)[-1]
    assert audit["why"].startswith("policy: canary_errors: ")
    assert "20 of the 200 rows of version 2 failed, 0 of the champion's 200" in audit["why"]
    assert canary.registry.find_alias(CHALLENGER) is None
    again = policy.apply_policy(PROJECT, canary.settings, canary.params, result)
    assert not again.record.decisions


def test_only_the_version_that_fails_is_rejected(
    canary: Canary, result: Result, bundle_path: Path, tmp_path: Path
) -> None:
    """A/B/n: version 3 fails on a tenth of its few rows, and version 2, which has many more, on none."""
    path = store.copy_with_new_card(bundle_path, tmp_path / "third")
    canary.registry.register(path, store.PASSED_CHECKS, {}, {}, [])
    rollout.start_arms(canary.registry, canary.settings, [("2", 0.6), ("3", 0.1)])
    routing = serving_folder.read_routing(canary.settings.serving_folder)
    since = int(datetime.fromisoformat(routing.updated_at).timestamp() * 1e6)
    rows: list[Prediction] = []
    for at, row in enumerate(Traffic(canary.registry.get("1").digest, "", 0, rows=3000, labelled=False).share(0)):
        assert isinstance(row, Prediction)
        by = ["1", "1", "1", "3", "2", "2", "2", "2", "2", "2"][at % 10]
        if at % 100 == 3:
            facts = {"assigned_variant": "challenger:3"}
        else:
            facts = {} if by == "1" else {"variant": "challenger", "model_version": by}
        rows.append(Prediction(**{**row._asdict(), "timestamp_us": since + at, **facts}))
    with Writer(canary.settings.prediction_log, "serve") as writer:
        writer.append(rows).result(30)
    found = policy.apply_policy(PROJECT, canary.settings, canary.params, result)
    assert [one.text for one in found.outcomes] == ["the experiment with version 2, 3 was ended"]
    why = rollout.read_audit(canary.settings.serving_folder)[-1]["why"]
    assert why.endswith("30 of the 300 rows of version 3 failed, 0 of the champion's 900")
    assert (canary.registry.get("2").rolled_back, bool(canary.registry.get("3").rolled_back)) == ("", True)


def test_errors_of_a_canary_never_wait_and_stop_no_later_rollback(params: Params, result: Result) -> None:
    policy_params = PolicyParams(degraded_quality="roll back", windows=1)
    at, digest = result.at, result.model.digest
    seen = observe(result, params, None, "9 of 9 failed")
    first = decide(seen, [], policy_params, at, digest)
    assert [(one.finding, one.action) for one in first] == [("canary_errors", "roll back")]
    record = Record(
        id="1", at=at, model="m", digest=digest, source="s", process="1@h", observations=seen, decisions=first
    )
    assert decide(seen, [record], policy_params, at, digest)[0].action == "roll back"
    quality = result.quality.model_copy(update={"verdict": "degraded", "reason": "ROC AUC 0.5"})
    degraded = observe(result.model_copy(update={"quality": quality}), params, None)
    assert decide(degraded, [record], policy_params, at, digest)[0].action == "roll back"


def test_errors_of_a_canary_lead_to_one_retraining(params: Params, result: Result) -> None:
    policy_params = PolicyParams(canary_errors="retrain", windows=2)
    seen, history = observe(result, params, None, "9 of 9 failed"), list[Record]()
    for hour in range(6):
        at = result.at + timedelta(hours=hour)
        found = decide(seen, history, policy_params, at, result.model.digest)
        about = Record(
            id="1",
            at=at,
            model="m",
            digest=result.model.digest,
            source="s",
            process="1@h",
            observations=seen,
            decisions=found,
        )
        history.append(about)
    assert [one.decisions[0].action for one in history] == ["alert", "retrain", *["alert"] * 4]


def test_unknown_action_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"policy: canary_errors: no such action; did you mean 'roll back'\?"):
        config_model.parse({"canary_errors": "rollback"}, PolicyParams, name="policy")
    with pytest.raises(ConfigError, match=r"no such finding 'canary_error'; did you mean 'canary_errors'\?"):
        config_model.parse({"canary_error": "alert"}, PolicyParams, name="policy")


def test_policy_is_carried_out_although_a_sink_fails(canary: Canary, result: Result) -> None:
    rollout.start(canary.registry, canary.settings, "2", 0.5)
    send_past(canary, failed=20)

    def watch(report: Any) -> None:
        report(type("Run", (), {"result": result})())
        raise AlertError("2 alerts were not delivered")

    with pytest.raises(AlertError, match="2 alerts were not delivered"):
        policy.act_on(PROJECT, canary.settings, canary.params, watch)
    assert rollout.read_plan(canary.registry) is None
    assert decisions.read(policy.FILE).outcomes[0].succeeded


def test_hourly_check_spends_its_part_of_the_error_budget(canary: Canary) -> None:
    """12 of 200 failed rows are enough for the whole budget of errors, but not for a quarter of a third of it."""
    rollout.start(canary.registry, canary.settings, "2", 0.5)
    send_past(canary, failed=6)
    evidence = float(log_errors(np.array((0, 12)), np.array((200, 200)), 0.5, ratio=1.0, rate=0.01))
    budget = AlphaBudget()
    assert -math.log(budget.errors) < evidence < -math.log(budget.hourly_errors / 4)
    assert budget.look_errors + budget.hourly_errors == pytest.approx(budget.errors)
    now = datetime.now(UTC) + timedelta(minutes=1)
    assert find_errors(canary.settings, canary.params, now) == ""


def test_errors_of_an_experiment_raise_an_alert_until_it_is_over(canary: Canary, result: Result) -> None:
    rollout.start(canary.registry, canary.settings, "2", 0.5)
    send_past(canary, failed=20)

    def raised(action: str) -> list[tuple[str, str]]:
        actions = PolicyParams.model_validate({"canary_errors": action})
        rules = policy.silence((build_rule(canary.settings, canary.params),), actions)
        now = result.model_copy(update={"at": datetime.now(UTC)})
        return [(one.rule, one.evidence) for one in build_alerts(now, rules)]

    evidence = "40 of the 200 rows of version 2 failed, 0 of the champion's 200"
    assert raised("alert") == raised("roll back") == [("experiment-errors", evidence)]
    assert raised("none") == []
    rollout.abort(canary.registry, canary.settings, "over")
    assert raised("alert") == []
    assert result.verdict == "insufficient data"
    assert can_end(result, "experiment-errors")
