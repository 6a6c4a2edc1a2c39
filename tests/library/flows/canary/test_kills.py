"""A controller that is killed anywhere is completed by the next look, with the same decision; two at once are one."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flywheel_ml.core import serving_folder
from flywheel_ml.flows import rollout
from flywheel_ml.flows.canary import acting, controller
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.flows.retraining.policy import FILE
from flywheel_ml.flows.rollout import changes, serving
from flywheel_ml.flows.run_state import FOLDER
from flywheel_ml.model.registration.registry import CHAMPION, Registry
from flywheel_ml.monitoring.policy import decisions
from flywheel_ml.utils.errors import ProjectError
from library.flows.canary.conftest import Canary
from library.helpers import project
from library.helpers.project import PROJECT


class Killed(BaseException):
    """Stands for a `kill -9` at a place."""


class Scenario(NamedTuple):
    """A decision, the traffic that leads to it, and what serves afterwards."""

    action: str
    traffic: dict[str, Any]
    days: int
    after: str


SCENARIOS = {
    "advance": Scenario("advance", {}, 0, "version 1, version 2 for 50% of the keys"),
    "promote": Scenario("promote", {"rows": 2000}, 0, "version 2"),
    "roll back": Scenario("roll back", {"failed": 20}, 0, "version 1"),
    "expire": Scenario("expire", {"rows": 100}, 15, "version 1"),
}
PLACES: dict[str, Callable[[pytest.MonkeyPatch, Callable[..., Any]], None]] = {
    "decided": lambda patch, kill: patch.setattr(acting, "act", kill),
    "rejected": lambda patch, kill: patch.setattr(rollout, "abort", kill),
    "planned": lambda patch, kill: patch.setattr(Registry, "set_plan", kill),
    "alias": lambda patch, kill: patch.setattr(changes, "serve_champion", kill),
    "routed": lambda patch, kill: patch.setattr(serving_folder, "write_routing", kill),
    "audited": lambda patch, kill: patch.setattr(serving, "prune_bundles", kill),
    "done": lambda patch, kill: patch.setattr(controller, "Outcome", kill),
}
"""Just before each write of a look: nothing after it happens."""
QUICK = ("decided", "planned", "done")


def begin(canary: Canary, scenario: Scenario) -> None:
    """Bring the ramp to where the scenario's decision is due."""
    canary.with_canary(shares=(0.5,)).start()
    if scenario.action == "promote":
        canary.send()
        canary.look()
    canary.send(**scenario.traffic)
    canary.now = canary.now.fromtimestamp(canary.now.timestamp() + 86_400 * scenario.days, canary.now.tzinfo)


def find_champion(canary: Canary) -> str:
    found = canary.registry.find_alias(CHAMPION)
    assert found is not None
    return found.number


@pytest.mark.parametrize(
    "place", [place if place in QUICK else pytest.param(place, marks=pytest.mark.full) for place in PLACES]
)
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_look_is_completed_with_the_same_decision(
    canary: Canary, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    scenario = SCENARIOS[name]
    begin(canary, scenario)
    killed = False

    def kill(*_: Any, **__: Any) -> None:
        nonlocal killed
        killed = True
        raise Killed

    with monkeypatch.context() as patch:
        PLACES[place](patch, kill)
        try:
            canary.look()
        except Killed:
            assert killed
    if not killed:
        return  # The scenario does not pass this place.
    # Evidence that arrives in between does not change what was decided.
    if decisions.read(FILE).find_pending_canary() and canary.plan and canary.ramp.current.share is None:
        canary.send(worse=40, better=0)
    found = canary.look()
    assert found.action == scenario.action
    now = serving_folder.read_routing(canary.settings.serving_folder)
    assert rollout.describe_routing(now) == scenario.after
    assert find_champion(canary) == ("2" if name == "promote" else "1")
    due = [one for one in decisions.read(FILE).canaries if one.is_due]
    assert due[-1].action == scenario.action
    assert len(due) == (2 if name == "promote" else 1), "the decision is made once"
    outcome = decisions.read(FILE).find_outcome(due[-1], due[-1].action)
    assert outcome is not None
    assert outcome.succeeded
    if name == "advance":
        assert [one.step for one in canary.ramp.steps] == [0, 1]


LOOK = f"""
import sys
from datetime import datetime
from pathlib import Path
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.canary import controller
from {project.PACKAGE}.project import PROJECT
params = PROJECT.load_params(Path(sys.argv[2]))
found = controller.look(PROJECT, Settings.read(), params, now=datetime.fromisoformat(sys.argv[1]))
print(found.action, found.outcome.text if found.outcome else found.reason, flush=True)
"""


def test_other_controller_at_work_holds(canary: Canary) -> None:
    canary.start().send()
    with lock_project(FOLDER, "canary"):
        found = canary.look()
        assert found.action == "hold"
        assert "another `canary` is running in this project" in found.reason
        with pytest.raises(ProjectError, match="another `canary` is running"):
            canary.look(approve=True)
    assert canary.look().action == "advance"


def test_plan_that_another_machine_changed_is_left_alone(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock holds on one machine only; the registry's plan is compared before it is changed."""
    canary.start().send()
    act = acting.act

    def act_later(*arguments: Any) -> str:
        rollout.abort(canary.registry, canary.settings, why="another machine")
        return act(*arguments)

    monkeypatch.setattr(acting, "act", act_later)
    found = canary.look()
    assert found.outcome is not None
    assert not found.outcome.succeeded
    assert "was changed in the meantime" in found.outcome.text
    assert canary.plan is None


def test_promotion_that_a_person_rolled_back_is_not_repeated(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(canary, SCENARIOS["promote"])

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(controller, "Outcome", kill)
        with pytest.raises(Killed):
            canary.look()
    assert find_champion(canary) == "2"
    rollout.rollback(canary.registry, canary.settings)
    found = canary.look()
    assert found.outcome is not None
    assert found.outcome.text == "version 2 was rolled back in the meantime; nothing was done"
    assert find_champion(canary) == "1"


@pytest.mark.parametrize(
    "is_killed",
    [
        pytest.param(False, id="ended by a person"),
        pytest.param(True, id="killed between its writes", marks=pytest.mark.full),
    ],
)
def test_promotion_without_a_plan(canary: Canary, monkeypatch: pytest.MonkeyPatch, is_killed: bool) -> None:
    """A promotion clears the plan before it sets the alias, and so does a person who ends the experiment."""
    begin(canary, SCENARIOS["promote"])

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr("mlflow.MlflowClient.set_registered_model_alias", kill)
        else:
            patch.setattr(acting, "act", kill)
        with pytest.raises(Killed):
            canary.look()
    if not is_killed:
        rollout.abort(canary.registry, canary.settings)
    assert canary.plan is None
    outcome = canary.look().outcome
    assert outcome is not None
    expected = "version 2 is champion" if is_killed else "the experiment was ended in the meantime; nothing was done"
    assert (outcome.succeeded, outcome.text) == (is_killed, expected)
    assert find_champion(canary) == ("2" if is_killed else "1")


def test_registry_that_is_away_holds_and_serving_continues(canary: Canary) -> None:
    canary.start().send()
    before = serving_folder.read_routing(canary.settings.serving_folder)
    away = canary.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    canary.settings, there = away, canary.settings
    found = canary.look()
    assert (found.action, found.is_unknown, found.is_over) == ("hold", True, False)
    assert found.reason.startswith("the registry is unavailable, servers continue unchanged, the next look continues: ")
    assert "\n" not in found.reason
    assert serving_folder.read_routing(there.serving_folder) == before
    canary.settings = there
    assert canary.look().action == "advance"


def test_full_disk_holds_and_is_named(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    canary.start().send()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "routing.json")

    with monkeypatch.context() as patch:
        patch.setattr(serving_folder, "write_routing", fail)
        found = canary.look()
    assert (found.action, found.is_over) == ("hold", False)
    assert found.reason == "'routing.json' cannot be used, the next look continues: No space left on device"
    assert canary.look().action == "advance"


def test_log_that_is_away_holds(canary: Canary) -> None:
    canary.start().send()
    there = canary.settings
    canary.settings = there.model_copy(update={"prediction_log": "postgresql://me:secret@127.0.0.1:9/log"})
    found = canary.look()
    assert (found.action, found.is_over) == ("hold", False)
    assert found.reason.startswith("the prediction log is unavailable, the next look continues: ")
    assert "\n" not in found.reason
    assert "secret" not in found.reason
    assert controller.inspect(PROJECT, canary.settings, canary.params).reason == found.reason
    with pytest.raises(ProjectError, match="the prediction log is unavailable"):
        canary.look(approve=True)
    canary.settings = there
    assert canary.look().action == "advance"


@pytest.mark.chaos
def test_processes_killed_and_at_once_act_once(canary: Canary, folder: Path) -> None:
    canary.start().send()
    words = ("-c", LOOK, canary.now.isoformat(), str(project.ROOT / "params.yaml"))
    killed = project.run(folder, *words, PYTHONPATH=str(project.AUDIT_HOOK), AUDIT_KILL=r"os.rename:routing\.json")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    looks = [project.start(folder, *words) for _ in range(2)]
    texts = [one.communicate(timeout=600)[0] for one in looks]
    assert any(text.startswith("advance version 2 answers 5%") for text in texts), texts
    assert len([one for one in decisions.read(FILE).canaries if one.is_due]) == 1
    now = serving_folder.read_routing(canary.settings.serving_folder)
    assert rollout.describe_routing(now) == "version 1, version 2 for 5% of the keys"
