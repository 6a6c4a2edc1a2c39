"""Detects drift: compares the profile of a window with the profile of the reference rows.

A column has drifted if the difference is both significant and large: its Holm-corrected p-value is at most
significance_level and its effect reaches a minimum. docs/monitoring-methods.md has the reasons, the sources and
the measured error rates.
"""

from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import stats

from flywheel_ml.core.params import MonitorParams
from flywheel_ml.core.profile import PREDICTION, Counts, Profile
from flywheel_ml.monitoring.ks import find_widest_gap, ks_distance, ks_p_value
from flywheel_ml.utils import config_model, formatting

MIN_PRESENT = 30
"""The values of a column are compared only if both sides have this many."""
MIN_EXPECTED = 5
"""Smallest expected count of a chi-square cell (Cochran 1954, "Some Methods for Strengthening the Common χ² Tests")."""
MAX_SHOWN_CATEGORIES = 3

Aspect = Literal["values", "missing", "unseen"]
Verdict = Literal["ok", "drift", "insufficient data"]


class DriftTest(config_model.StrictModel):
    """One test of the window against the reference.

    `effect` and `min_effect` are shares in [0, 1]: the KS distance for numbers, the total variation distance for
    categories, the difference of rates for missing and unseen values. `reference` and `window` hold the figures to
    show: quartiles and the share of values up to the point where the two differ most, the shares of the categories
    that changed most, or the rate.
    """

    column: str
    aspect: Aspect
    statistic: Literal["KS distance", "total variation", "rate difference"]
    effect: float
    min_effect: float
    p_value: float
    adjusted: float
    drifted: bool
    reference: dict[str, float]
    window: dict[str, float]


class Drift(config_model.StrictModel):
    """The result of all tests, strongest first."""

    verdict: Verdict
    reason: str
    significance_level: float
    comparisons: tuple[DriftTest, ...] = ()
    skipped: tuple[str, ...] = Field(default=(), description="columns with too few values to compare")

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the drifted columns, strongest first, without the model's output."""
        return tuple(
            dict.fromkeys(test.column for test in self.comparisons if test.drifted and test.column != PREDICTION)
        )

    @property
    def prediction_drifted(self) -> bool:
        """Whether the distribution of the model's output has changed."""
        return any(test.drifted for test in self.comparisons if test.column == PREDICTION)


def detect_drift(reference: Profile, window: Profile, params: MonitorParams, excluded: Collection[str] = ()) -> Drift:
    """Compare a window with its reference.

    Args:
        reference: profile of the reference rows.
        window: profile of the window, in the bins and categories of `reference`.
        params: significance level, minimum effects and the smallest number of rows.
        excluded: columns to skip because they always differ, such as dates.
    """
    for name, profile in (("window", window), ("reference", reference)):
        if profile.rows < params.min_rows:
            reason = f"the {name} has {formatting.rows(profile.rows)}; {params.min_rows:,} are needed to compare"
            return Drift(verdict="insufficient data", reason=reason, significance_level=params.significance_level)
    tests, too_few_values = [], []
    for name, counts in reference.columns.items():
        if name in window.columns and name not in excluded:
            found = list(_compare_column(name, counts, window.columns[name], params))
            tests += found
            if not any(test.aspect == "values" for test in found) and not _is_constant(counts, window.columns[name]):
                too_few_values.append(name)
    if not tests:
        reason = "no column has enough values to compare"
        return Drift(
            verdict="insufficient data",
            reason=reason,
            significance_level=params.significance_level,
            skipped=tuple(too_few_values),
        )
    judged = sorted(
        _apply_holm(tests, params.significance_level),
        key=lambda test: (not test.drifted, -test.effect / test.min_effect, test.column),
    )
    drift = Drift(
        verdict="ok",
        reason="",
        significance_level=params.significance_level,
        comparisons=tuple(judged),
        skipped=tuple(too_few_values),
    )
    columns = [*drift.drifted, *(["the prediction"] if drift.prediction_drifted else [])]
    if not columns:
        return drift.model_copy(update={"reason": f"none of {len(judged)} comparisons found a difference that matters"})
    return drift.model_copy(update={"verdict": "drift", "reason": f"changed: {', '.join(columns)}"})


def _compare_column(name: str, reference: Counts, window: Counts, params: MonitorParams) -> Iterator[DriftTest]:
    if min(reference.present, window.present) >= MIN_PRESENT:
        if reference.kind == "numeric":
            min_effect = params.min_effect_prediction if name == PREDICTION else params.min_effect_numeric
            yield from _compare_numbers(name, reference, window, min_effect)
        else:
            yield from _compare_categories(name, reference, window, params.min_effect_categorical)
    missing = (reference.missing, reference.rows), (window.missing, window.rows)
    yield from _compare_rates(name, "missing", *missing, min_effect=params.min_effect_categorical)
    unseen = (reference.unknown, reference.present), (window.unknown, window.present)
    yield from _compare_rates(name, "unseen", *unseen, min_effect=params.min_effect_categorical)


def _compare_numbers(name: str, reference: Counts, window: Counts, min_effect: float) -> Iterator[DriftTest]:
    before, after = np.array(reference.counts), np.array(window.counts)
    if _is_constant(reference, window):
        return
    seen = compute_quartiles(reference), compute_quartiles(window)
    split = find_widest_gap(before, after)
    for counts, summary in zip((before, after), seen, strict=True):
        summary |= {
            "split": reference.edges[split],
            "share up to split": float(counts[: split + 1].sum() / counts.sum()),
        }
    yield _build_test(
        name, "values", "KS distance", ks_distance(before, after), min_effect, ks_p_value(before, after), *seen
    )


def _compare_categories(name: str, reference: Counts, window: Counts, min_effect: float) -> Iterator[DriftTest]:
    table = pool_rare_columns(np.array([(*counts.known, counts.unknown) for counts in (reference, window)]))
    if table.shape[1] < 2:
        return
    shares = table / table.sum(axis=1, keepdims=True)
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    p = float(stats.chi2_contingency(table, correction=False).pvalue)
    yield _build_test(
        name, "values", "total variation", effect, min_effect, p, *_find_largest_changes(reference, window)
    )


def _compare_rates(
    name: str, aspect: Aspect, reference: tuple[int, int], window: tuple[int, int], min_effect: float
) -> Iterator[DriftTest]:
    events = reference[0] + window[0]
    # A margin of zero can never be significant, so it is not tested and costs the others no power (Tarone 1990).
    if events in (0, reference[1] + window[1]) or not (reference[1] and window[1]):
        return
    before, after = reference[0] / reference[1], window[0] / window[1]
    table = np.array([[reference[0], reference[1] - reference[0]], [window[0], window[1] - window[0]]])
    expected = table.sum(axis=0).min() * table.sum(axis=1).min() / table.sum()
    exact = expected < MIN_EXPECTED
    p = stats.fisher_exact(table).pvalue if exact else stats.chi2_contingency(table, correction=False).pvalue
    yield _build_test(
        name, aspect, "rate difference", abs(after - before), min_effect, float(p), {"rate": before}, {"rate": after}
    )


def _build_test(
    column: str,
    aspect: Aspect,
    statistic: Literal["KS distance", "total variation", "rate difference"],
    effect: float,
    min_effect: float,
    p_value: float,
    reference: dict[str, float],
    window: dict[str, float],
) -> DriftTest:
    return DriftTest(
        column=column,
        aspect=aspect,
        statistic=statistic,
        effect=effect,
        min_effect=min_effect,
        p_value=p_value,
        adjusted=1.0,
        drifted=False,
        reference=reference,
        window=window,
    )


def _apply_holm(tests: list[DriftTest], significance_level: float) -> list[DriftTest]:
    """Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure": adjusted p-values, then verdicts."""
    order = np.argsort([test.p_value for test in tests], kind="stable")
    judged, running = [], 0.0
    for rank, at in enumerate(order):
        test = tests[at]
        running = max(running, min(1.0, test.p_value * (len(tests) - rank)))
        drifted = running <= significance_level and test.effect >= test.min_effect
        judged.append(test.model_copy(update={"adjusted": running, "drifted": drifted}))
    return judged


def pool_rare_columns(table: np.ndarray) -> np.ndarray:
    """Pool the rarest columns of a 2 × k table until every expected count is at least 5; drop empty columns.

    The choice depends on the column totals alone, which keeps the chi-square test valid.
    """
    totals = table.sum(axis=0)
    table = table[:, np.argsort(-totals, kind="stable")]
    totals = table.sum(axis=0)
    needed = MIN_EXPECTED * table.sum() / table.sum(axis=1).min()
    kept = int((totals >= needed).sum())
    rest = int(totals[kept:].sum())
    if rest == 0:
        return table[:, :kept]
    if rest < needed and kept:
        kept -= 1
    return np.column_stack((table[:, :kept], table[:, kept:].sum(axis=1)))


def compute_quartiles(counts: Counts) -> dict[str, float]:
    """Compute the quartiles of a counted numeric column, interpolated within bins; {} without values."""
    if not counts.present:
        return {}
    edges = np.array((counts.edges[0], *counts.edges, counts.edges[-1]))
    cumulative = np.concatenate(([0], np.cumsum(counts.counts))) / counts.present
    found = np.interp([0.25, 0.5, 0.75], cumulative, edges)
    # A repeated value has a bin of its own, which begins at the float below it.
    low, median, high = np.where(np.isin(np.nextafter(found, np.inf), edges), np.nextafter(found, np.inf), found)
    return {"lower quartile": float(low), "median": float(median), "upper quartile": float(high)}


def compute_shares(counts: Counts) -> dict[str, float]:
    """Compute the share of every category among the rows with a value."""
    return {name: count / max(1, counts.present) for name, count in zip(counts.categories, counts.counts, strict=True)}


def _find_largest_changes(reference: Counts, window: Counts) -> tuple[dict[str, float], dict[str, float]]:
    before, after = compute_shares(reference), compute_shares(window)
    moved = sorted(before, key=lambda name: (-abs(after[name] - before[name]), name))[:MAX_SHOWN_CATEGORIES]
    return {name: before[name] for name in moved}, {name: after[name] for name in moved}


def _is_constant(reference: Counts, window: Counts) -> bool:
    """Whether all rows of both sides are in one bin, so there is nothing to compare."""
    both = (*(a + b for a, b in zip(reference.counts, window.counts, strict=True)), reference.unseen + window.unseen)
    return sum(count > 0 for count in both) == 1
