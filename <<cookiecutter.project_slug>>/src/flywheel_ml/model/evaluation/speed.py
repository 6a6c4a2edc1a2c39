"""Measures the latency of single-row predictions and the size of a bundle, for the gates."""

import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from flywheel_ml.core.bundle import HASHED, MANIFEST, Bundle
from flywheel_ml.core.contract import Columns

ROWS = 200
ROUNDS = 3


def measure_latency_ms(opened: Bundle, columns: Columns, clock: Callable[[], float] = perf_counter) -> float:
    """Measure the median milliseconds of `Bundle.predict` for one row, in the best of several rounds to reduce noise.

    Args:
        opened: the bundle.
        columns: its input columns, at least one row; each round predicts up to 200 rows one by one.
        clock: returns seconds; `time.thread_time` counts processor time, which other processes do not lengthen.
    """
    n_rows = len(next(iter(columns.values())))
    single = [{name: values[at : at + 1] for name, values in columns.items()} for at in range(min(n_rows, ROWS))]
    return min(_compute_median([_time_prediction(opened, row, clock) for row in single]) for _ in range(ROUNDS)) * 1000


def measure_size_mb(path: Path) -> float:
    """Measure the size of a bundle's files in megabytes (10⁶ bytes)."""
    return sum((path / name).stat().st_size for name in (*HASHED, MANIFEST)) / 1e6


def _compute_median(seconds: list[float]) -> float:
    return float(statistics.median(seconds))


def _time_prediction(opened: Bundle, row: Columns, clock: Callable[[], float]) -> float:
    start = clock()
    opened.predict(row)
    return clock() - start
