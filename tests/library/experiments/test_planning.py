"""Sample sizes agree with the textbook formula, and durations with a simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from flywheel_ml.experiments.planning import (
    Period,
    compute_crossing_probabilities,
    compute_rows,
    plan_sample_size,
    rate_variances,
)
from flywheel_ml.experiments.sequential import compute_boundary
from flywheel_ml.utils.errors import ConfigError

EVEN = (Period(0.5),)


def test_fixed_sample_is_that_of_the_textbook() -> None:
    """n of each arm = (z(1 - α/2) + z(power))² · (σ₁² + σ₂²) / effect²."""
    variances = rate_variances(0.05, 0.01)
    each = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * sum(variances) / 0.01**2
    found = plan_sample_size(0.01, variances, EVEN, rows_per_day=2000)
    assert found.fixed == pytest.approx(2 * each)
    assert found.days[0] == pytest.approx(found.fixed / 2000)


def test_sequential_test_is_fast_enough_at_the_planned_effect() -> None:
    found = plan_sample_size(0.1, (1.0, 1.0), EVEN, 1000)
    assert found.median <= 1.1 * found.fixed
    assert found.power_at_twice >= 0.8
    assert found.power_at_fixed >= 0.5
    assert found.median < found.expected < found.quantile_80 < 2 * found.fixed


def test_small_share_needs_five_times_the_rows() -> None:
    small = plan_sample_size(0.1, (1.0, 1.0), (Period(0.05),), 1000)
    even = plan_sample_size(0.1, (1.0, 1.0), EVEN, 1000)
    assert small.fixed / even.fixed == pytest.approx(0.25 / (0.05 * 0.95))


def test_rows_follow_the_schedule() -> None:
    schedule = (Period(0.05, 1000), Period(0.5))
    information = np.array([0.05 * 0.95 * 500, 0.05 * 0.95 * 1000, 0.05 * 0.95 * 1000 + 0.25 * 400])
    assert compute_rows(information, schedule, (1.0, 1.0)) == pytest.approx([500, 1000, 1400])


@pytest.mark.parametrize("drift", [0.0, 0.5, 1.0])
def test_crossing_probabilities_agree_with_a_simulation(drift: float) -> None:
    runs, looks, step = 20_000, 100, 0.157
    times = step * np.arange(1, looks + 1)
    rng = np.random.default_rng(0)
    paths = rng.normal(drift * step, np.sqrt(step), size=(runs, looks)).cumsum(axis=1)
    crossed = np.logical_or.accumulate(paths >= compute_boundary(times, 0.025, 1.0), axis=1).mean(axis=0)
    found = compute_crossing_probabilities(times, drift, 1.0, 0.025)
    assert np.abs(found - crossed).max() < 4 * np.sqrt(0.25 / runs) + 0.002
    assert drift or found[-1] <= 0.025


@pytest.mark.parametrize(
    "changed",
    [
        {"effect": 0.0},
        {"effect": math.nan},
        {"variances": (0.0, 0.0)},
        {"variances": (-1.0, 2.0)},
        {"rows_per_day": 0.0},
        {"alpha": 1.0},
        {"power": 0.0},
        {"sequential_alpha": 0.0},
        {"schedule": ()},
        {"schedule": (Period(1.0),)},
    ],
)
def test_values_out_of_range_are_rejected(changed: dict[str, object]) -> None:
    known = {"effect": 0.1, "variances": (1.0, 1.0), "schedule": EVEN, "rows_per_day": 10.0}
    with pytest.raises(ConfigError, match="out of range"):
        plan_sample_size(**{**known, **changed})  # type: ignore[arg-type]


def test_rates_out_of_range_are_rejected() -> None:
    with pytest.raises(ConfigError, match="not rates"):
        rate_variances(0.99, 0.02)
