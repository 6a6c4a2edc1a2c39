"""Runs the synthetic replay in a folder of its own."""

import time
from collections.abc import Callable

from flywheel_ml.core import paths
from flywheel_ml.core.params import TEST_ROWS, MonitorParams
from flywheel_ml.flows.replay.synthetic.detection import (
    SyntheticResult,
    count_alarms,
    list_detections,
)
from flywheel_ml.flows.replay.synthetic.faults import FAULTS, make_schedule
from flywheel_ml.flows.replay.synthetic.stream import Watched, watch
from flywheel_ml.flows.replay.workspace import open_folder
from flywheel_ml.utils.files import write_json

REPORT = paths.REPORTS / "replay" / "synthetic.json"
WINDOW_ROWS, SEED = 1000, 13
EVERY_ROWS = (1000, 3000, 5000)
"""Rows between two alarms of the detectors to compare with."""


def run_synthetic(
    monitor: MonitorParams,
    rows: int = WINDOW_ROWS,
    seed: int = SEED,
    on_window: Callable[[Watched], object] = id,
) -> SyntheticResult:
    """Write a stream with every fault into a log, monitor it window by window, and report the delays.

    Args:
        monitor: thresholds of monitoring, those of the project; the reference is the test rows.
        rows: rows of a window.
        seed: of rows and model.
        on_window: called after each window.

    Raises:
        Busy: another replay is running.
    """
    start, schedule = time.perf_counter(), make_schedule(FAULTS)
    watched: list[Watched] = []
    with open_folder() as folder:
        for one in watch(folder, schedule, monitor.model_copy(update={"reference": TEST_ROWS}), rows, seed):
            watched.append(one)
            on_window(one)
    detections = tuple(list_detections(watched, EVERY_ROWS))
    counted, periodic = count_alarms(watched, detections, EVERY_ROWS)
    result = SyntheticResult(
        seed=seed,
        window_rows=rows,
        windows=len(watched),
        detections=detections,
        monitoring=counted,
        periodic=periodic,
        seconds=round(time.perf_counter() - start, 1),
    )
    write_json(REPORT, result.model_dump(mode="json"))
    return result
