"""Every fault of the synthetic replay is found within its limit, through the prediction log and real monitoring."""

from pathlib import Path

import numpy as np
import pytest

from flywheel_ml.core.params import MonitorParams
from flywheel_ml.flows.replay.synthetic import faults, plant
from flywheel_ml.flows.replay.synthetic.detection import SyntheticResult, list_periodic_alarms
from flywheel_ml.flows.replay.synthetic.faults import FAULTS, Fault, make_schedule
from flywheel_ml.flows.replay.synthetic.run import REPORT, run_synthetic
from flywheel_ml.flows.replay.synthetic.stream import Watched, watch
from flywheel_ml.utils.files import read_json

KINDS = (
    "sudden drift",
    "gradual drift",
    "recurring drift",
    "unit change",
    "broken sensor",
    "label flip",
    "upstream outage",
    "traffic stops",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticResult, list[Watched]]:
    """The result for the default thresholds, and each window."""
    watched: list[Watched] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("synthetic"))
        # A sink of this machine must receive nothing.
        patch.setenv("ML_ALERT_WEBHOOK", "http://127.0.0.1:9/none")
        result = run_synthetic(MonitorParams(), on_window=watched.append)
        assert SyntheticResult.model_validate(read_json(REPORT), strict=False) == result
        assert Path("reports").joinpath("monitoring").exists() is False
    return result, watched


def test_every_kind_of_fault_is_in_the_stream() -> None:
    assert {kind for kind in KINDS if any(fault.name.startswith(kind) for fault in FAULTS)} == set(KINDS)


@pytest.mark.parametrize("at", range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_fault_is_found_within_its_limit(found: tuple[SyntheticResult, list[Watched]], at: int) -> None:
    detection = found[0].detections[at]
    assert detection.name == FAULTS[at].name
    assert detection.delay is not None
    assert detection.delay <= FAULTS[at].limit, detection


def test_clean_windows_raise_no_alarm(found: tuple[SyntheticResult, list[Watched]]) -> None:
    assert [one.alerts for one in found[1] if one.window.fault is None] == [()] * found[0].monitoring.clean_windows


def test_alarms_every_n_rows_are_less_precise(found: tuple[SyntheticResult, list[Watched]]) -> None:
    result = found[0]
    assert result.late == []
    assert result.monitoring.precision == 1.0
    # An alarm in every window finds what has rows in time, and is false in each clean window.
    every_window = result.periodic[0]
    assert (every_window.every, every_window.false) == (result.window_rows, every_window.clean_windows)
    assert all(one.precision < 0.75 or one.in_time < len(FAULTS) / 2 for one in result.periodic)


def test_fault_that_thresholds_hide_is_late(tmp_path: Path) -> None:
    """The sign is read from the result of monitoring: with a minimum effect of 1, nothing drifts."""
    hidden = MonitorParams(min_effect_numeric=1.0, min_effect_prediction=1.0)
    (one,) = [
        one
        for one in watch(tmp_path, make_schedule([FAULTS[0]])[faults.CLEAN : faults.CLEAN + 1], hidden, 1000, 13)
        if one.window.fault is not None
    ]
    assert (one.sign, one.alerts) == ("", ())


def test_periodic_alarms_count_rows() -> None:
    window = make_schedule([])[0]
    watched = [Watched(window, rows, (), "") for rows in (1000, 1000, 0, 1000, 3000)]
    assert list_periodic_alarms(watched, 2000) == [False, True, False, False, True]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_damage_keeps_the_columns(fault: Fault) -> None:
    rows = plant.draw_rows(10, np.random.default_rng(0))
    damaged = fault.damage(rows, 0)
    assert damaged.schema == rows.schema
    assert not damaged.equals(rows)
