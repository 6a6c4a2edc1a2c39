"""Drift is detected if it matters, rarely reported without cause, and never decided on too few rows."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from flywheel_ml.core import profile
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.params import MonitorParams
from flywheel_ml.monitoring import drift
from library.helpers.windows import build_reference, draw_columns, make_contract

PARAMS = MonitorParams()
CONTRACT = make_contract(7)


def verdicts(windows: int, rows: tuple[int, int], shift: dict[str, float], seed: int) -> list[drift.Verdict]:
    """Verdicts on windows drawn with `shift`, each against a reference of its own."""
    rng = np.random.default_rng(seed)
    found: list[drift.Verdict] = []
    for _ in range(windows):
        reference = profile.build(CONTRACT, draw_columns(CONTRACT, rows[0], rng), rng.random(rows[0]))
        window = profile.count(reference, draw_columns(CONTRACT, rows[1], rng, shift), rng.random(rows[1]))
        found.append(drift.detect_drift(reference, window, PARAMS).verdict)
    return found


def one(shift: dict[str, float] | None = None, rows: int = 2000, **changes: np.ndarray) -> drift.Drift:
    """The comparison of one window, columns replaced where given."""
    rng = np.random.default_rng(5)
    reference = profile.build(CONTRACT, draw_columns(CONTRACT, 5000, rng), rng.random(5000))
    columns = {**draw_columns(CONTRACT, rows, rng, shift), **changes}
    prediction = columns.pop("prediction", rng.random(rows))
    return drift.detect_drift(reference, profile.count(reference, columns, prediction), PARAMS)


def test_windows_without_drift_are_ok() -> None:
    # At a rate of 1%, more than 4 of 40 would come up in one of 15,000 seeds.
    assert verdicts(40, (5000, 1000), {}, seed=0).count("drift") <= 4


def test_shift_of_a_quarter_sigma_in_one_column_is_detected() -> None:
    assert verdicts(20, (5000, 1000), {"x3": 0.25}, seed=1).count("drift") >= 17


def test_small_significant_differences_are_not_drift() -> None:
    shift = {f"x{at}": 0.03 for at in range(7)}
    assert verdicts(6, (50_000, 50_000), shift, seed=2) == ["ok"] * 6


def test_drifted_column_comes_first_with_its_change() -> None:
    found = one({"x3": 0.5})
    assert found.drifted == ("x3",)
    first = found.comparisons[0]
    assert (first.column, first.aspect, first.drifted) == ("x3", "values", True)
    assert first.window["median"] - first.reference["median"] == pytest.approx(0.5, abs=0.1)
    assert first.effect == pytest.approx(0.197, abs=0.03)


def test_more_missing_values_are_drift() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    values[::8] = np.nan
    found = one(x0=values)
    assert [(c.column, c.aspect) for c in found.comparisons if c.drifted] == [("x0", "missing")]
    assert found.comparisons[0].window == {"rate": 0.125}


def test_entirely_missing_column_is_drift() -> None:
    found = one(x0=np.full(2000, np.nan), kind=np.full(2000, None, dtype=object))
    assert found.drifted == ("kind", "x0")
    assert set(found.skipped) == {"kind", "x0"}


def test_unseen_category_is_drift() -> None:
    kinds = np.array(list("abcdefgh"), dtype=object)[np.random.default_rng(0).integers(0, 8, 2000)]
    kinds[::10] = "zebra"
    found = one(kind=kinds)
    assert ("kind", "unseen") in [(c.column, c.aspect) for c in found.comparisons if c.drifted]


def texts(rows: int, rng: np.random.Generator, listed: int = 0, fresh: float = 0.0) -> np.ndarray:
    """Names as frequent as words are in a language, 600 of them or those `listed`; some of the rows hold a new one."""
    weights = 1 / np.arange(1, (listed or 600) + 1)
    names = rng.choice(len(weights), rows, p=weights / weights.sum()).astype(str).astype(object)
    names[rng.random(rows) < fresh] = "new"
    return names


@pytest.mark.parametrize("listed", [0, 120])
def test_unseen_values_are_drift_only_if_they_increase(listed: int) -> None:
    rng = np.random.default_rng(3)
    categories = tuple(map(str, range(listed))) or None
    column = Column(name="maker", type="string", categories=categories, max_unknown_share=0.01 if listed else 0.0)
    contract = Contract(name="drawn", columns=(column, Column(name="y", type="boolean", role="target")))
    found = {"clean": 0, "fresh": 0}
    for _ in range(20):
        parts = {"training": 2100, "reference": 450, "clean": 900, "fresh": 900}
        drawn = {name: {"maker": texts(rows, rng, listed, 0.15 * (name == "fresh"))} for name, rows in parts.items()}
        reference = profile.build(contract, drawn["reference"], rng.random(450), training=drawn["training"])
        for name in found:
            window = profile.count(reference, drawn[name], rng.random(900))
            found[name] += drift.detect_drift(reference, window, PARAMS).verdict == "drift"
    # At a rate of 1%, more than 2 of 20 would come up in one of 1,000 seeds.
    assert found["clean"] <= 2
    assert found["fresh"] >= 19


def test_swapped_categories_are_drift() -> None:
    kinds = np.array(list("aaaabcdefgh"), dtype=object)[np.random.default_rng(0).integers(0, 11, 2000)]
    found = one(kind=kinds)
    assert found.drifted == ("kind",)
    assert found.comparisons[0].window["a"] == pytest.approx(4 / 11, abs=0.04)


def test_prediction_drift_is_separate_from_input_drift() -> None:
    found = one(prediction=np.random.default_rng(0).random(2000) ** 2)
    assert found.verdict == "drift"
    assert found.prediction_drifted
    assert found.drifted == ()


def test_untested_columns_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    reference = profile.build(CONTRACT, draw_columns(CONTRACT, 3000, rng), rng.random(3000))
    window = profile.count(reference, draw_columns(CONTRACT, 1000, rng, {"x0": 3.0}), rng.random(1000))
    assert drift.detect_drift(reference, window, PARAMS, excluded=["x0"]).verdict == "ok"
    assert drift.detect_drift(reference, window, PARAMS).verdict == "drift"


@pytest.mark.parametrize("rows", [0, 1, 199])
def test_too_few_rows_are_insufficient_data(rows: int) -> None:
    assert one({"x0": 9.0}, rows=rows).verdict == "insufficient data"
    assert one(rows=rows).verdict == "insufficient data"
    assert ("has 1 row;" in one(rows=rows).reason) == (rows == 1)


def test_reference_with_too_few_rows_is_insufficient_data() -> None:
    rng = np.random.default_rng(0)
    reference = profile.build(CONTRACT, draw_columns(CONTRACT, 100, rng), rng.random(100))
    window = profile.count(reference, draw_columns(CONTRACT, 1000, rng), rng.random(1000))
    assert drift.detect_drift(reference, window, PARAMS).verdict == "insufficient data"


def test_holm_adjustment_matches_the_textbook() -> None:
    found = one()
    raw = sorted(c.p_value for c in found.comparisons)
    expected = np.maximum.accumulate([min(1.0, p * (len(raw) - rank)) for rank, p in enumerate(raw)])
    assert sorted(c.adjusted for c in found.comparisons) == pytest.approx(expected)


def test_rare_categories_are_pooled_until_chi_square_is_valid() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        table = rng.poisson(rng.exponential(8, size=(1, 30)), size=(2, 30)) + np.array([[3], [0]])
        table[1, 0] += 40
        pooled = drift.pool_rare_columns(table)
        assert pooled.sum() == table.sum()
        expected = pooled.sum(axis=0) * pooled.sum(axis=1, keepdims=True) / pooled.sum()
        assert pooled.shape[1] == 1 or expected.min() >= drift.MIN_EXPECTED


def test_merged_profiles_give_the_result_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    reference = profile.build(CONTRACT, draw_columns(CONTRACT, 3000, rng), rng.random(3000))
    columns, prediction = draw_columns(CONTRACT, 1000, rng, {"x1": 0.3}), rng.random(1000)
    cuts = [0, 1, 400, 999, 1000]
    parts = [
        profile.count(reference, {name: v[a:b] for name, v in columns.items()}, prediction[a:b])
        for a, b in pairwise(cuts)
    ]
    whole = profile.count(reference, columns, prediction)
    assert profile.merge(parts) == whole
    assert drift.detect_drift(reference, profile.merge(parts), PARAMS) == drift.detect_drift(reference, whole, PARAMS)


def test_rates_of_few_events_have_the_exact_p_value() -> None:
    for before, after in ((3, 2), (0, 3), (1, 4), (2, 0)):
        (found,) = drift._compare_rates("x", "missing", (before, 900), (after, 300), 0.05)
        chances = stats.hypergeom(1200, before + after, 300).pmf(np.arange(before + after + 1))
        expected = chances[chances <= chances[after] * (1 + 1e-7)].sum()
        assert found.p_value == pytest.approx(expected)


def test_chi_square_of_rare_categories_keeps_its_level() -> None:
    # Most of the 80 categories are expected less than once in the window.
    rng = np.random.default_rng(0)
    shares = 0.9 ** np.arange(80) / (0.9 ** np.arange(80)).sum()
    names = tuple(map(str, range(80)))

    def p_value() -> float:
        reference, window = (
            profile.Counts(kind="categorical", categories=names, counts=tuple(rng.multinomial(rows, shares).tolist()))
            for rows in (1000, 300)
        )
        (found,) = drift._compare_categories("x", reference, window, 0.05)
        return found.p_value

    found = np.array([p_value() for _ in range(1500)])
    # The 1e-5 quantiles of 1,500 tests at these levels.
    assert 42 <= (found <= 0.05).sum() <= 114
    assert (found <= 0.01).sum() <= 34


def test_chi_square_of_rare_categories_matches_permutations() -> None:
    rng = np.random.default_rng(1)
    table = rng.multinomial(1300, [0.5, 0.3, 0.1, *[0.005] * 20])
    window = stats.multivariate_hypergeom.rvs(table, 300, random_state=rng)
    pooled = drift.pool_rare_columns(np.array([table - window, window]))
    tables = stats.random_table(pooled.sum(axis=1), pooled.sum(axis=0)).rvs(5000, random_state=rng)
    expected = pooled.sum(axis=0) * pooled.sum(axis=1, keepdims=True) / pooled.sum()
    statistics = ((tables - expected) ** 2 / expected).sum(axis=(1, 2))
    seen = ((pooled - expected) ** 2 / expected).sum()
    found = stats.chi2_contingency(pooled, correction=False).pvalue
    assert found == pytest.approx(np.mean(statistics >= seen - 1e-9), abs=0.03)


def test_quartile_of_a_repeated_value_is_that_value() -> None:
    contract = make_contract(1)
    columns = {"x0": np.append(np.zeros(900), np.arange(1.0, 101.0)), "kind": np.full(1000, "a", dtype=object)}
    found = build_reference(contract, columns, np.zeros(1000))
    assert drift.compute_quartiles(found.columns["x0"]) == {"lower quartile": 0, "median": 0, "upper quartile": 0}
