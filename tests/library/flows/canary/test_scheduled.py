"""What a schedule or a loop does: it starts a ramp for a new challenger, and looks until the ramp is over."""

from datetime import timedelta
from typing import Any

import pytest

from flywheel_ml.cli import canary_terminal
from flywheel_ml.core import serving_folder
from flywheel_ml.flows import rollout
from flywheel_ml.flows.canary import controller, scheduled
from library.flows.canary.conftest import Canary
from library.helpers.project import PROJECT


def look_or_start(canary: Canary) -> controller.Look:
    return scheduled.look_or_start(PROJECT, canary.settings, canary.params)


def test_schedule_starts_a_ramp_only_if_asked_to(canary: Canary) -> None:
    assert look_or_start(canary).is_idle
    assert canary.plan is None
    canary.with_canary(auto_start=True, settle_seconds=30.0)
    assert look_or_start(canary).reason == "a canary of version 2 was started"
    assert canary.ramp.steps[0].step == 0
    found = look_or_start(canary)
    assert (found.action, found.reason) == ("continue", "step shadow has just begun; its rows count after 30 s")


def test_expired_challenger_is_not_started_again(canary: Canary) -> None:
    canary.with_canary(auto_start=True).start()
    canary.now += timedelta(days=15)
    assert canary.look().action == "expire"
    assert look_or_start(canary).is_idle
    assert canary.plan is None


def test_schedule_does_not_start_again_what_a_person_ended(canary: Canary) -> None:
    canary.with_canary(auto_start=True)
    look_or_start(canary)
    rollout.abort(canary.registry, canary.settings)
    assert look_or_start(canary).is_idle
    assert canary.plan is None


def test_schedule_leaves_a_manual_experiment_alone(canary: Canary) -> None:
    canary.with_canary(auto_start=True)
    rollout.start(canary.registry, canary.settings, "2", 0.1)
    assert look_or_start(canary).reason.endswith("and it is no canary")
    now = serving_folder.read_routing(canary.settings.serving_folder)
    assert rollout.describe_routing(now) == "version 1, version 2 for 10% of the keys"


def test_watch_reports_changes_and_ends_with_the_ramp(canary: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    canary.with_canary(shares=(0.5,)).start()
    traffic: list[dict[str, Any]] = [{"labelled": False}, {"labelled": False}, {"rows": 2000}, {"rows": 2000}]
    sends = iter(traffic)

    def look_once() -> controller.Look:
        canary.send(**next(sends))
        return canary.look()

    reported: list[str] = []

    def report(found: controller.Look) -> None:
        reported.append(found.action)
        canary_terminal.show_look(found)

    assert scheduled.watch(look_once, report, 0.0).action == "promote"
    assert reported == ["hold", "advance", "promote"], "the second hold is not news"
    shown = capsys.readouterr().out
    assert "Canary of version 2 next to champion version 1, since " in shown
    assert "done: version 2 answers 50%" in shown
    assert "guards, as a share of the evidence that trips them: errors 0%, latency 0%, sample ratio 0%" in shown
