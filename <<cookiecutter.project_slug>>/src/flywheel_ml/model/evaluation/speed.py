"""How long a bundle takes for a single row, and how large it is: what the flow measures when the gates are asked."""

import statistics
from pathlib import Path
from time import perf_counter

from flywheel_ml.core.bundle import HASHED, MANIFEST, Bundle
from flywheel_ml.core.contract import Columns

ROWS = 200
ROUNDS = 3


def measure_latency_ms(opened: Bundle, columns: Columns) -> float:
    """Median milliseconds of `Bundle.predict` for one row, in the best of several rounds: others use the machine, too.

    Args:
        opened: the bundle.
        columns: its input columns, at least one row; up to 200 rows are asked one by one in each round.
    """
    n_rows = len(next(iter(columns.values())))
    single = [{name: values[at : at + 1] for name, values in columns.items()} for at in range(min(n_rows, ROWS))]
    return min(_compute_median([_time_prediction(opened, row) for row in single]) for _ in range(ROUNDS)) * 1000


def measure_size_mb(path: Path) -> float:
    """Megabytes (10⁶ bytes) of a bundle's files."""
    return sum((path / name).stat().st_size for name in (*HASHED, MANIFEST)) / 1e6


def _compute_median(seconds: list[float]) -> float:
    return float(statistics.median(seconds))


def _time_prediction(opened: Bundle, row: Columns) -> float:
    start = perf_counter()
    opened.predict(row)
    return perf_counter() - start
