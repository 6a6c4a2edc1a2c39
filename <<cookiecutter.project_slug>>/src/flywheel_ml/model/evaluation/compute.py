"""Computing performance: training, memory and latency, compared with a committed baseline.

Times are divided by those of a fixed calibration loop that was measured in the same run, so that baseline and current
figures may come from machines of different speed.
"""

import time
from collections.abc import Iterator

import numpy as np

from flywheel_ml.utils.config_model import StrictModel

ROUNDS = 5
_SORTED, _ADDITIONS = 200_000, 100_000


class ComputeFigures(StrictModel):
    """What a run cost.

    Attributes:
        key: table and estimator; figures of different keys are not comparable.
        calibration_ms: processor time of the calibration loop.
        latency_cpu_ms: processor time of a single row, the median.
        train_cpu_us: processor microseconds of the train stage for a training row; None if it did not run.
        peak_mb: most memory of a stage; None if none ran.
    """

    key: str
    calibration_ms: float
    latency_cpu_ms: float
    train_cpu_us: float | None = None
    peak_mb: float | None = None


def run_calibration_loop() -> float:
    """Milliseconds of processor time of a fixed amount of sorting and of interpreted additions; the best of five."""
    numbers = np.random.default_rng(0).random(_SORTED)
    return min(_time_loop(numbers) for _ in range(ROUNDS)) * 1000


def find_regressions(baseline: ComputeFigures, current: ComputeFigures, max_increase: float) -> Iterator[str]:
    """Yield what grew by more than a share of the baseline; times relative to the calibration loops.

    Args:
        baseline: the figures to compare with.
        current: those of now.
        max_increase: the tolerated growth; 1.0 is twice as much.
    """
    speed = current.calibration_ms / baseline.calibration_ms
    for name, before, now, scale in (
        ("latency of a single row", baseline.latency_cpu_ms, current.latency_cpu_ms, speed),
        ("processor time of training", baseline.train_cpu_us, current.train_cpu_us, speed),
        ("memory of a stage", baseline.peak_mb, current.peak_mb, 1.0),
    ):
        if before and now and (ratio := now / before / scale) > 1 + max_increase:
            yield f"{name} is {ratio:.1f} times that of the baseline, allowed {1 + max_increase:g}"


def _time_loop(numbers: np.ndarray) -> float:
    start = time.thread_time()
    np.sort(numbers)
    total = 0
    for at in range(_ADDITIONS):
        total += at
    return time.thread_time() - start
