"""The short form of `tests/benchmarks/canary_power.py`: error rates and power of whole ramps, guards included."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = 100
ODDS = 1e-4
"""Each limit is the quantile of a binomial at which a correct rate would fail once in 10,000."""


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("canary_power")


@pytest.mark.parametrize("name", ["rate 50%", "lognormal", "paired, rate 5%"])
def test_ramp_keeps_its_error_rates_and_finds_the_margin(name: str, simulation: ModuleType) -> None:
    case = next(one for one in simulation.CASES if one.name == name)
    most, least = stats.binom.isf(ODDS, RUNS, 0.05), stats.binom.ppf(ODDS, RUNS, 0.8)
    found = {truth: simulation.run_case((case, truth, RUNS)) for truth in simulation.TRUTHS}
    assert np.isfinite(found["equal"].rolled_back).sum() <= most
    assert np.isfinite(found["worse"].promoted).sum() <= most
    assert np.isfinite(found["worse"].rolled_back).sum() >= least
    assert np.isfinite(found["better"].promoted).sum() >= least
    assert np.isfinite(found["equal"].peeked).sum() > np.isfinite(found["equal"].rolled_back).sum()


def test_sample_ratio_is_flagged_within_its_rows(simulation: ModuleType) -> None:
    for actual, planned, rows in ((0.55, 0.5, 5_000), (0.06, 0.05, 20_000)):
        flagged = simulation.count_sample_ratio_flags(actual, planned, rows, 400, seed=0)
        assert flagged >= stats.binom.ppf(ODDS, 400, 0.99)
        assert simulation.count_sample_ratio_flags(planned, planned, rows, 400, seed=0) <= 4
