"""Intervals of several challengers hold together: a simulation of equal arms, and the arithmetic of strata."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from flywheel_ml.experiments.comparison import ALPHA, Stratum, add_sums, average_means, choose_effect, compare
from flywheel_ml.experiments.sequential import LossSums

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = 300
ODDS = 1e-4
"""Each limit is the quantile of a binomial at which a correct rate would fail once in 10,000."""


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("abn_power")


@pytest.mark.parametrize("name", ["rate 5%", "revenue: 10% buy, lognormal"])
def test_equal_arms_seldom_have_a_winner_and_a_better_one_is_found(name: str, simulation: ModuleType) -> None:
    case = next(one for one in simulation.CASES if one.name == name)
    equal = simulation.simulate(case, 0.0, RUNS, seed=1, rows=6000)
    assert np.isfinite(equal.found).sum() <= stats.binom.isf(ODDS, RUNS, ALPHA)
    assert np.isfinite(equal.peeked).sum() > stats.binom.isf(ODDS, RUNS, ALPHA)
    fixed = simulation.find_fixed_sample(case)
    better = simulation.simulate(case, simulation.EFFECT_SIZE, RUNS, seed=2, rows=int(2 * fixed))
    assert np.isfinite(better.found).sum() >= stats.binom.ppf(ODDS, RUNS, 0.8)


def sums(rows: int, mean: float, deviation: float = 1.0) -> LossSums:
    return LossSums(rows, rows * mean, rows * (mean**2 + deviation**2))


def test_difference_is_that_of_the_weighted_means() -> None:
    strata = [Stratum(sums(1000, 5.0), sums(100, 5.5)), Stratum(sums(500, 9.0), sums(500, 9.5))]
    found = compare(strata, 0.1, ALPHA)
    champion, challenger = average_means(strata, 0.1)
    assert float(found.estimate) == pytest.approx(0.5) == pytest.approx(challenger - champion)
    assert found.low < 0.5 < found.high
    assert np.isnan(average_means([], 0.1)).all()


def test_more_arms_make_each_interval_wider() -> None:
    strata = [Stratum(sums(1000, 5.0), sums(1000, 5.0))]
    widths = [float(found.high - found.low) for found in (compare(strata, 0.1, ALPHA / arms) for arms in (1, 2, 5))]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_effect_is_a_tenth_of_the_deviation_and_1_if_that_is_unknown() -> None:
    assert float(choose_effect(sums(1000, 5.0, 2.0))) == pytest.approx(0.2)
    assert float(choose_effect(LossSums())) == 1.0
    assert float(choose_effect(sums(10, 5.0, 0.0))) == 1.0


def test_metric_around_zero_keeps_a_finite_interval() -> None:
    found = compare([Stratum(sums(1000, 0.0), sums(1000, 0.0))], 0.1, ALPHA)
    assert np.isfinite([float(found.low), float(found.high)]).all()


def test_sums_of_no_parts_are_empty() -> None:
    assert add_sums() == LossSums()
    assert add_sums(sums(1, 2.0), sums(1, 2.0)).rows == 2
