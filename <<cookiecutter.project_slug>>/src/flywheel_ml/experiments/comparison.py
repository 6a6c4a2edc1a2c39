"""Compares challengers with the champion on any metric; all intervals hold together, and at every look.

α is divided equally among the challengers. By the union bound, the probability that any interval ever misses its
difference is at most `ALPHA`, so the error rate of "some challenger is better or worse" is too, if none is.

Unlike a canary, a comparison has no margin and no scale of one row's loss. The planned effect is a tenth of the
champion's standard deviation unless it is given; it decides where the interval is narrowest. The smallest variance is
taken from the champion's rows as well (`_find_min_variance`). `tests/benchmarks/abn_power.py` of the template
repository measures the error rate with these estimates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flywheel_ml.experiments.sequential import (
    Interval,
    LossSums,
    Number,
    Score,
    combine_strata,
    compute_interval,
    score_paired,
    score_unpaired,
)

ALPHA = 0.05
"""Error probability of all intervals together."""
EFFECT_SIZE = 0.1
"""The planned effect if none is given, in standard deviations of one row of the champion."""


class Stratum(NamedTuple):
    """Sums of a metric over a period in which shares did not change.

    Attributes:
        champion: of the champion's rows.
        challenger: of the challenger's rows.
        differences: of the challenger's value minus the champion's, over rows that both answered; for a shadow.
    """

    champion: LossSums = LossSums()
    challenger: LossSums = LossSums()
    differences: LossSums | None = None


def choose_effect(champion: LossSums) -> Number:
    """Return the planned effect for sums of the champion's rows; 1 while their variance is unknown or 0."""
    deviation = np.sqrt(_find_variance(champion))
    return np.where(deviation > 0, EFFECT_SIZE * deviation, 1.0)


def score_strata(strata: Sequence[Stratum], effect: Number) -> Score:
    """Return the evidence about the difference between a challenger and the champion."""
    return combine_strata(_score(one, effect) for one in strata)


def compare(strata: Sequence[Stratum], effect: Number, alpha: float) -> Interval:
    """Return the difference of the means, challenger minus champion, with its confidence sequence at this look.

    Args:
        strata: all periods so far; rates of different shares are never pooled.
        effect: the planned difference, above 0, in units of the metric.
        alpha: error probability of both bounds together.
    """
    return compute_interval(score_strata(strata, effect), (alpha / 2, alpha / 2), effect)


def average_means(strata: Sequence[Stratum], effect: Number) -> tuple[float, float]:
    """Return the means of champion and challenger, weighted as the difference weights the strata; NaN if unknown."""
    weights = [float(_score(one, effect).information) for one in strata]
    total = sum(weights)
    if not total:
        return np.nan, np.nan
    means = [(_find_mean(one.champion), _find_mean(one.challenger)) for one in strata]
    champion, challenger = (
        sum(weight * float(mean[side]) for weight, mean in zip(weights, means, strict=True)) / total for side in (0, 1)
    )
    return champion, challenger


def add_sums(*parts: LossSums) -> LossSums:
    """Add the sums of several parts."""
    return LossSums(*(sum(values) for values in zip(*parts, strict=True))) if parts else LossSums()


def _score(stratum: Stratum, effect: Number) -> Score:
    floor = _find_min_variance(stratum.champion, effect)
    if stratum.differences is not None:
        return score_paired(stratum.differences, floor)
    return score_unpaired(stratum.champion, stratum.challenger, floor)


def _find_min_variance(champion: LossSums, effect: Number) -> Number:
    """Return the effect times the size of one event, so that a few rows without an event do not look certain.

    The size of an event is the mean square divided by the mean: 1 for a 0/1 metric. Around a mean of 0 it has no
    meaning; the result is therefore not more than the champion's variance.
    """
    size = champion.squares / np.maximum(np.abs(champion.total), 1e-300)
    return np.asarray(np.minimum(effect * size, _find_variance(champion)))


def _find_mean(sums: LossSums) -> np.ndarray:
    return np.asarray(sums.total / np.maximum(sums.rows, 1))


def _find_variance(sums: LossSums) -> np.ndarray:
    rows = np.maximum(np.asarray(sums.rows, dtype=np.float64), 1.0)
    return np.asarray(np.maximum(sums.squares / rows - (sums.total / rows) ** 2, 0.0))
