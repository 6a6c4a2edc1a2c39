"""The error rates of the drift check, for some kinds of tables; `tests/benchmarks/drift_power.py` measures all of them.

A bound here is exceeded with a probability of at most 1e-5, if the rate equals its target. The seeds are fixed.
"""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from flywheel_ml.core.params import MonitorParams
from library.helpers.drift_cases import CASES, Case, Drawn, Target, compare_hours, compare_rows, draw

CHANCE = 1e-5
WINDOWS = {
    "no drift, integers": 30,
    "no drift, booleans": 40,
    "no drift, 8 equal levels": 20,
    "50% to 60% true in one column": 30,
    "none to 10% in one column": 10,
    "3% of a category not listed": 8,
    "5% to 7% in one column": 8,
}
NO_SIGNIFICANCE = MonitorParams(significance_level=1 - 1e-12)
NO_MIN_EFFECT = MonitorParams(min_effect_numeric=1e-9, min_effect_categorical=1e-9, min_effect_prediction=1e-9)


@cache
def draw_windows(name: str) -> tuple[Case, list[Drawn]]:
    case = next(case for case in CASES if case.name == name)
    return case, [draw(case, seed) for seed in range(WINDOWS[name])]


def count_alarms(name: str, params: MonitorParams) -> int:
    return sum(compare_rows(drawn, params).verdict == "drift" for drawn in draw_windows(name)[1])


def is_within(target: Target, found: int, windows: int) -> bool:
    if target.bound == "at most":
        return found <= int(stats.binom.isf(CHANCE, windows, target.rate))
    return found >= int(stats.binom.ppf(CHANCE, windows, target.rate))


@pytest.mark.parametrize("name", WINDOWS)
def test_rate_of_alarms_is_within_its_bound(name: str) -> None:
    target = draw_windows(name)[0].target
    assert is_within(target, count_alarms(name, MonitorParams()), WINDOWS[name])


def test_clean_windows_alarm_without_the_significance_gate() -> None:
    name = "no drift, 8 equal levels"
    target = draw_windows(name)[0].target
    assert not is_within(target, count_alarms(name, NO_SIGNIFICANCE), WINDOWS[name])


@pytest.mark.parametrize("name", ["3% of a category not listed", "5% to 7% in one column"])
def test_irrelevant_shifts_alarm_without_the_minimum_effect(name: str) -> None:
    target = draw_windows(name)[0].target
    assert not is_within(target, count_alarms(name, NO_MIN_EFFECT), WINDOWS[name])


@pytest.mark.parametrize("kind", ["unseen values", "ties", "categories", "missing values", "24 hourly profiles"])
def test_hourly_profiles_give_the_result_of_the_rows(kind: str) -> None:
    case = [case for case in CASES if case.kind == kind and case.window <= 1000][-1]
    drawn = draw(case, seed=0)
    assert list(compare_hours(drawn)) == [compare_rows(drawn)] * 2


def test_hourly_profiles_without_an_hour_give_another_result() -> None:
    drawn = draw(CASES[-1], seed=0)
    kept = {name: values[100:] for name, values in drawn.columns.items()}
    assert next(compare_hours(drawn)) != compare_rows(drawn._replace(columns=kept, prediction=drawn.prediction[100:]))


def test_targets_are_missed_beyond_chance() -> None:
    rare, often = Target("at most", 0.01), Target("at least", 0.9)
    assert not rare.is_missed(10, 1000)
    assert rare.is_missed(11, 1000)
    assert not rare.is_missed(1, 20)
    assert rare.is_missed(4, 20)
    assert not often.is_missed(900, 1000)
    assert often.is_missed(899, 1000)
    assert not often.is_missed(16, 20)
    assert often.is_missed(13, 20)


def test_names_of_the_cases_are_unique_in_their_kind() -> None:
    names = [(case.kind, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    assert len({case.name for case in CASES if case.name in WINDOWS}) == len(WINDOWS)


def test_study_draws_the_shift_in_the_window_only() -> None:
    case = next(case for case in CASES if case.name == "60% to 70% zeros in one column")
    drawn = draw(case, seed=1)
    zeros = np.array([np.mean(values == 0) for values in drawn.columns.values()])
    assert zeros[0] == pytest.approx(0.7, abs=0.06)
    assert zeros[1:] == pytest.approx(0.6, abs=0.06)
