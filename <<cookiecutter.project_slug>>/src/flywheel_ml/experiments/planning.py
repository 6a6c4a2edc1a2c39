"""Sample sizes and durations of experiments: of a fixed-horizon test, and of the sequential one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from flywheel_ml.experiments.sequential import compute_boundary
from flywheel_ml.utils.errors import ConfigError

HORIZONS = 4
"""The sequential test is followed for this many times the fixed-horizon sample."""
STEPS_PER_HORIZON, GRID_STEP, REACH = 100, 0.04, 8.0
"""Looks for each fixed-horizon sample; width of the grid of scores, and how many deviations it covers."""


class Period(NamedTuple):
    """A part of the schedule: the challenger's share, and its labelled rows of both variants; the last has no end."""

    share: float
    rows: float = math.inf


class SampleSize(NamedTuple):
    """Labelled rows of both variants, and days. A quantile that is not reached within `HORIZONS` samples is infinite.

    Attributes:
        fixed: of the test with one look at the end, at the asked α and power.
        expected: mean of the sequential test, which ends at twice the fixed-horizon sample.
        median: of the sequential test, if the difference equals the planned effect.
        quantile_80: likewise.
        days: of the four above.
        power_at_fixed: probability that the sequential test decided by then.
        power_at_twice: within twice the fixed-horizon sample.
    """

    fixed: float
    expected: float
    median: float
    quantile_80: float
    days: tuple[float, float, float, float]
    power_at_fixed: float
    power_at_twice: float


def plan_sample_size(
    effect: float,
    variances: tuple[float, float],
    schedule: Sequence[Period],
    rows_per_day: float,
    alpha: float = 0.05,
    power: float = 0.8,
    sequential_alpha: float = 0.025,
) -> SampleSize:
    """Return sample sizes to detect a difference of `effect`.

    Args:
        effect: smallest difference of the mean losses that matters, above 0, in units of the loss.
        variances: of one row's loss, of the champion and of the challenger; see `rate_variances`.
        schedule: shares over time; one period for a plain experiment.
        rows_per_day: labelled rows of both variants.
        alpha: two-sided error probability of the fixed-horizon test.
        power: of the fixed-horizon test.
        sequential_alpha: one-sided error probability of the sequential test.

    Raises:
        ConfigError: a value is out of its range.
    """
    for name, value, fits in (
        ("effect", effect, 0 < effect < math.inf),
        ("variances", variances, min(variances) >= 0 and 0 < sum(variances) < math.inf),
        ("rows_per_day", rows_per_day, 0 < rows_per_day < math.inf),
        ("alpha", alpha, 0 < alpha < 1),
        ("power", power, 0 < power < 1),
        ("sequential_alpha", sequential_alpha, 0 < sequential_alpha < 1),
        ("shares", tuple(one.share for one in schedule), bool(schedule) and all(0 < p.share < 1 for p in schedule)),
    ):
        if not fits:
            raise ConfigError(f"an experiment cannot be planned with {name} {value}: it is out of range")
    needed = float((stats.norm.isf(alpha / 2) + stats.norm.ppf(power)) ** 2) / effect**2
    times = np.arange(1, HORIZONS * STEPS_PER_HORIZON + 1) / STEPS_PER_HORIZON * needed
    crossed = compute_crossing_probabilities(times, effect, effect, sequential_alpha)
    rows = compute_rows(times, schedule, variances)
    twice = crossed[: 2 * STEPS_PER_HORIZON]
    spent = np.diff(twice, prepend=0.0)
    found = (
        rows[STEPS_PER_HORIZON - 1],
        float(spent @ rows[: len(twice)] + (1 - twice[-1]) * rows[len(twice) - 1]),
        *(float(rows[crossed.searchsorted(level)]) if crossed[-1] >= level else math.inf for level in (0.5, 0.8)),
    )
    fixed, expected, median, late = (float(one) for one in found)
    return SampleSize(
        *(fixed, expected, median, late),
        days=(fixed / rows_per_day, expected / rows_per_day, median / rows_per_day, late / rows_per_day),
        power_at_fixed=float(crossed[STEPS_PER_HORIZON - 1]),
        power_at_twice=float(twice[-1]),
    )


def rate_variances(rate: float, difference: float) -> tuple[float, float]:
    """Return the variances of a 0/1 loss with the rates `rate` and `rate + difference`."""
    other = rate + difference
    if not (0 <= rate <= 1 and 0 <= other <= 1):
        raise ConfigError(f"a rate of {rate} and a difference of {difference} are not rates in [0, 1]; change one")
    return rate * (1 - rate), other * (1 - other)


def compute_rows(information: np.ndarray, schedule: Sequence[Period], variances: tuple[float, float]) -> np.ndarray:
    """Return how many labelled rows of both variants give an information, in 1 / units of the loss²."""
    rows, left = np.zeros_like(information), np.asarray(information, dtype=np.float64).copy()
    for at, period in enumerate(schedule):
        rate = 1 / (variances[0] / (1 - period.share) + variances[1] / period.share)
        used = left if at == len(schedule) - 1 else np.minimum(left, rate * period.rows)
        rows, left = rows + used / rate, left - used
    return rows


def compute_crossing_probabilities(times: np.ndarray, drift: float, effect: float, alpha: float) -> np.ndarray:
    """Return the probability that a Brownian motion has reached the sequential boundary by each time.

    Propagates the density of the motion below the boundary on a grid, as for group-sequential designs (Armitage,
    McPherson & Rowe 1969).

    Args:
        times: information, equally spaced from the first step on.
        drift: the true difference.
        effect: the planned one, for which the boundary is tuned.
        alpha: one-sided error probability.
    """
    scaled, relative = np.asarray(times) * effect**2, drift / effect
    boundary = compute_boundary(times, alpha, effect) * effect
    step, deviation = float(scaled[0]), float(np.sqrt(scaled[0]))
    low = -REACH * np.sqrt(scaled[-1]) + min(0.0, relative * scaled[-1])
    grid = np.arange(low, boundary.max() + GRID_STEP, GRID_STEP)
    half = math.ceil((REACH * deviation + abs(relative) * step) / GRID_STEP)
    kernel = stats.norm.pdf(GRID_STEP * np.arange(-half, half + 1), relative * step, deviation) * GRID_STEP
    density = stats.norm.pdf(grid, relative * step, deviation)
    alive = np.empty(len(scaled))
    for at, bound in enumerate(boundary):
        if at:
            density = np.convolve(density, kernel)[half : half + len(grid)]
        density[grid >= bound] = 0.0
        alive[at] = density.sum() * GRID_STEP
    return 1 - alive
