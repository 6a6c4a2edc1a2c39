"""Decisions are stored before they are carried out, by one process, and none is lost or doubled."""

import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import MANIFEST, Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.core.retraining_params import Action, PolicyParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout
from flywheel_ml.flows.retraining import age, policy
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.monitoring.alerting.rules import build_alerts, can_end
from flywheel_ml.monitoring.alerts import Finding
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.monitoring.policy.deciding import decide
from flywheel_ml.monitoring.result import Result, evaluate_window
from flywheel_ml.monitoring.window import count_nothing
from flywheel_ml.utils.files import sha256_file
from library.helpers import project, store
from library.helpers.project import PROJECT

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from flywheel_ml.flows.retraining import policy
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.monitoring.policy import decisions
at = 0
while True:
    with lock_project(Path("var"), "decisions", wait_seconds=60):
        one = decisions.Attempt(record=f"{sys.argv[1]}-{at}", action="retrain", at=datetime.now(UTC), process="1@h")
        decisions.append(policy.FILE, one)
    print(at, flush=True)
    at += 1
"""
DECIDE = f"""
import sys
from pathlib import Path
from flywheel_ml.flows.retraining import policy
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.policy.deciding import decide
from flywheel_ml.monitoring.result import Result
from {project.PACKAGE}.project import PROJECT
result = Result.model_validate_json(Path("result.json").read_text())
params = PROJECT.load_params()
print(policy.apply_policy(PROJECT, Settings.read(), params, result).record.decisions)
"""


@pytest.fixture
def result(bundle_path: Path, params: Params) -> Result:
    """A window whose model is degraded."""
    bundle = Bundle.open(bundle_path, features=PROJECT.features)
    found = evaluate_window(count_nothing(bundle, (), "prediction log", "now"), bundle, params, datetime.now(UTC))
    quality = found.quality.model_copy(update={"verdict": "degraded", "reason": "ROC AUC 0.5"})
    return found.model_copy(update={"quality": quality})


def with_policy(params: Params, found: PolicyParams) -> Params:
    return params.model_copy(update={"policy": found})


@pytest.fixture
def registry_with_two(two: Registry) -> Registry:
    """The registry with two versions, and the contract with its name."""
    text = (project.ROOT / "contract.yaml").read_text()
    Path("contract.yaml").write_text(text.replace("\nname: flights\n", f"\nname: {store.NAME}\n"))
    return two


ROLL_BACK = PolicyParams(degraded_quality="roll back", windows=1)


def test_decision_is_stored_with_its_evidence(folder: Path, params: Params, result: Result) -> None:
    policy.apply_policy(PROJECT, Settings(), params, result)
    (record,) = decisions.read(policy.FILE).records
    assert [(one.finding, one.action) for one in record.decisions] == [("degraded_quality", "alert")]
    assert {one.finding: one.evidence for one in record.observations}["degraded_quality"] == "ROC AUC 0.5"


def test_rollback_is_carried_out_and_its_outcome_stored(
    registry_with_two: Registry, params: Params, result: Result
) -> None:
    rollout.promote(registry_with_two, Settings(), "2")
    of_champion = result.model_copy(
        update={"model": result.model.model_copy(update={"digest": registry_with_two.get("2").digest, "version": "2"})}
    )
    done = policy.apply_policy(PROJECT, store.settings(Path.cwd()), with_policy(params, ROLL_BACK), of_champion)
    assert [(one.succeeded, one.text) for one in done.outcomes] == [(True, "version 1 is champion again")]
    audit = rollout.read_audit(Settings().serving_folder)[-1]
    assert audit["why"] == "policy: degraded_quality: ROC AUC 0.5"


def test_killed_rollback_is_completed_once(registry_with_two: Registry, params: Params, result: Result) -> None:
    """The champion has changed since: another rollback would go one version too far."""
    settings = store.settings(Path.cwd())
    roll_back = with_policy(params, ROLL_BACK)
    made = policy.apply_policy(PROJECT, settings, params, result).record
    left = decide(made.observations, [], ROLL_BACK, made.at, made.digest)
    decisions.append(policy.FILE, made.model_copy(update={"id": "left", "decisions": left, "process": "999999999@x"}))
    assert not policy.apply_policy(PROJECT, settings, roll_back, result).outcomes  # Another machine may be at it.
    here = f"999999999@{policy._name_process().partition('@')[2]}"
    decisions.append(policy.FILE, made.model_copy(update={"id": "here", "decisions": left, "process": here}))
    (outcome,) = policy.apply_policy(PROJECT, settings, roll_back, result).outcomes
    assert (outcome.record, outcome.succeeded) == ("here", True)
    assert outcome.text.endswith("is no longer champion; nothing was rolled back")
    assert not policy.apply_policy(PROJECT, settings, roll_back, result).outcomes


def test_failed_retraining_is_an_outcome_and_not_tried_again(folder: Path, params: Params, result: Result) -> None:
    retrain = with_policy(params, PolicyParams(degraded_quality="retrain", windows=1))
    shutil.copyfile(project.ROOT / "contract.yaml", "contract.yaml")
    (outcome,) = policy.apply_policy(PROJECT, Settings(), retrain, result).outcomes
    assert not outcome.succeeded
    assert "retraining starts from a commit" in outcome.text
    assert policy.apply_policy(PROJECT, Settings(), retrain, result).outcomes == []


def test_kills_of_writers_lose_and_damage_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    promised = []
    for round_ in range(3):
        writers = [project.start(tmp_path, "-c", WRITER, f"{round_}{name}") for name in "ab"]
        lines: list[list[str]] = [[], []]
        end = time.monotonic() + 60
        while min(map(len, lines)) < 5 and time.monotonic() < end:
            for writer, seen in zip(writers, lines, strict=True):
                assert writer.stdout is not None
                seen.append(writer.stdout.readline().strip())
        for writer, name, seen in zip(writers, "ab", lines, strict=True):
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate()
            promised += [f"{round_}{name}-{at}" for at in [*seen, *rest.split()]]
    with (tmp_path / policy.FILE).open("a") as stream:
        stream.write('{"kind":"attempt","rec')  # What a full disk may leave.
    decisions.append(policy.FILE, decisions.Attempt(record="last", action="retrain", at=datetime.now(UTC), process=""))
    found = [one.record for one in decisions.read(policy.FILE).attempts]
    assert set(promised) <= set(found)
    assert found[-1] == "last"
    assert len(found) == len(set(found))


def test_processes_at_once_decide_one_retraining(folder: Path, result: Result) -> None:
    shutil.copyfile(project.ROOT / "contract.yaml", "contract.yaml")
    project.set_params(folder, {"policy": {"degraded_quality": "retrain", "windows": 1}})
    Path("result.json").write_text(result.to_json())
    processes = [project.start(folder, "-c", DECIDE, stdin=subprocess.DEVNULL) for _ in range(4)]
    for process in processes:
        assert process.communicate(timeout=600)[1] == ""
    made = [one.action for record in decisions.read(policy.FILE).records for one in record.decisions]
    assert sorted(made) == ["alert", "alert", "alert", "retrain"]


def test_age_of_the_served_champion_makes_it_stale(
    tmp_path: Path, bundle_path: Path, params: Params, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert age.find_age(Settings(), result.at) is None
    ref = serving_folder.BundleRef(version="7", digest=sha256_file(bundle_path / MANIFEST))
    folder = serving_folder.bundle_folder(Settings().serving_folder, ref)
    shutil.copytree(bundle_path, folder)
    trained = (result.at - timedelta(days=40)).isoformat()
    (folder / "lineage.json").write_text(f'{{"trained_at": "{trained}"}}')
    now = serving_folder.Routing(name="small", champion=ref, updated_at=trained)
    serving_folder.write_routing(Settings().serving_folder, now)
    assert age.find_age(Settings(), result.at) == timedelta(days=40)
    limited = with_policy(params, PolicyParams(max_model_age_days=30.0))
    record = policy.apply_policy(PROJECT, Settings(), limited, result).record
    stale = next(one for one in record.observations if one.finding == "stale_model")
    assert (stale.state, stale.evidence) == ("present", "trained 40.0 days ago, at most 30")

    def raised(action: Action, days: float) -> list[tuple[str, str]]:
        chosen = PolicyParams(stale_model=action, max_model_age_days=days)
        own = age.build_age_rule(Settings(), with_policy(params, chosen))
        return [(one.rule, one.evidence) for one in build_alerts(result, policy.silence((own,), chosen))]

    assert raised("alert", 30.0) == raised("retrain", 30.0) == [("model-age", stale.evidence)]
    assert raised("none", 30.0) == raised("alert", 41.0) == []
    assert can_end(result, "model-age")


def test_finding_that_is_mapped_to_none_raises_no_alert(result: Result) -> None:
    def rule(_: Result) -> list[Finding]:
        return [Finding("warning", name, "", (), name) for name in ("drift", "degraded-quality", "my-own")]

    quiet = PolicyParams(drift="none", degraded_quality="none")
    (silenced,) = policy.silence([rule], quiet)
    assert [found.what for found in silenced(result)] == ["drift", "my-own"]
    (silenced,) = policy.silence([rule], quiet.model_copy(update={"prediction_drift": "none"}))
    assert [found.what for found in silenced(result)] == ["my-own"]
