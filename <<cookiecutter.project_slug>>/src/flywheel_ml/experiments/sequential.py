"""Anytime-valid inference for a difference of mean losses, from running sums.

The difference is the challenger's mean loss minus the champion's, in units of the loss; above zero is worse. A stratum
is a period in which shares did not change, so each row had the same chance to reach the challenger. With an estimate d
and its variance v, a stratum has the information I = 1/v and the score d·I. Scores and information of strata add up.
The total score S behaves as a Brownian motion whose drift is the difference, at a time equal to the total information
(Jennison & Turnbull 1999, chapter 3; strong approximation: Waudby-Smith et al., arXiv:2103.06476).

For every λ, exp(λS - λ²I/2) is then a martingale if the difference is zero. So is its mean over λ ~ N(e, 1/ρ), where e
is the effect that the test is planned for. By Ville's inequality, this mean ever reaches 1/α with a probability of at
most α. Solved for the score, that is the boundary

    u(I) = -ρe + sqrt((I + ρ) · (ρe² + log((I + ρ) / (ρα²))))

With e = 0 it is the normal mixture of Howard et al. 2021 (arXiv:1810.08240, section 3). A mixture around the planned
effect decides sooner, and is as valid: at every look, however many there are.

Assumptions: rows are independent given the variant, the loss has a finite variance, and strata have enough rows for
the central limit theorem (`MIN_STRATUM_ROWS`). So the error rate is asymptotic; `docs/experiments.md` has the measured
one. `tests/benchmarks/canary_power.py` of the template repository measures it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MIN_STRATUM_ROWS = 50
"""A stratum with fewer rows of either variant carries no information yet."""
EFFECT_PRECISION = 8.0
"""ρ·e²: the mixture's standard deviation is the planned effect divided by its root. At 8 and α = 0.025, the median time
to detect the planned effect is 0.82 times the fixed sample's, and power within twice that sample is 90%. The best
mixture around zero has 0.95 and 88%; a single point has 0.78 and 92%, but is slow if the effect is another."""
MIN_RELATIVE_VARIANCE = 1e-10
"""A smaller variance, relative to the mean square, is the rounding error of running sums, and counts as zero."""

Number = float | np.ndarray
"""A number, or an array of them: every function here also works on arrays of equal shape, such as one per look."""


class LossSums(NamedTuple):
    """Running sums of a loss: number of rows, sum of losses, sum of squared losses."""

    rows: Number = 0.0
    total: Number = 0.0
    squares: Number = 0.0


class Score(NamedTuple):
    """Evidence about a difference: score, in 1 / units of the loss, and information, in 1 / units²."""

    score: Number = 0.0
    information: Number = 0.0


class Interval(NamedTuple):
    """An estimate and its bounds, in units of the loss; infinite bounds without information."""

    estimate: Number
    low: Number
    high: Number


def score_paired(differences: LossSums, min_variance: Number = 0.0) -> Score:
    """Return the evidence of rows that both models answered.

    Args:
        differences: sums of the challenger's loss minus the champion's, a row each.
        min_variance: of the difference of one row. Below it, a few rows decide, and the normal approximation fails.
    """
    variance = np.maximum(_variance(differences), min_variance)
    return _score(_mean(differences), variance / _at_least_one(differences.rows), np.asarray(differences.rows))


def score_unpaired(champion: LossSums, challenger: LossSums, min_variance: Number = 0.0) -> Score:
    """Return the evidence of one stratum in which each row was answered by one of the two.

    The challenger has few rows at first, and its variance is underestimated whenever its mean is. So the variance is at
    least what it would be if the challenger were worse by the margin: for a rate p, that is p + margin instead of p.

    Args:
        champion: sums of the champion's losses.
        challenger: sums of the challenger's losses.
        min_variance: the margin times the loss of one event, as above.
    """
    known = np.maximum(_variance(champion), min_variance)
    ours = np.maximum(_variance(challenger), _variance(champion) + min_variance)
    variance = known / _at_least_one(champion.rows) + ours / _at_least_one(challenger.rows)
    return _score(_mean(challenger) - _mean(champion), variance, np.minimum(champion.rows, challenger.rows))


def combine_strata(strata: Iterable[Score]) -> Score:
    """Add the evidence of independent strata, each weighted by its information; rates are never pooled."""
    score: Number = 0.0
    information: Number = 0.0
    for one in strata:
        score, information = score + one.score, information + one.information
    return Score(score, information)


def compute_boundary(information: Number, alpha: float, effect: Number) -> np.ndarray:
    """Return the score that, at a difference of zero or less, is ever reached with probability of at most `alpha`.

    Args:
        information: at which to compute it, at least 0.
        alpha: one-sided error probability.
        effect: the planned effect, above 0, in units of the loss.
    """
    return compute_mixture_boundary(information, alpha, effect, EFFECT_PRECISION / effect**2)


def compute_mixture_boundary(information: Number, alpha: float, mean: Number, precision: Number) -> np.ndarray:
    """Return u(I) above for a mixture with this mean and precision (1 / variance)."""
    total = np.asarray(information, dtype=np.float64) + precision
    height = precision * mean**2 + np.log(total / precision) - 2 * np.log(alpha)
    boundary: np.ndarray = np.sqrt(total * height) - precision * mean
    return boundary


def compute_log_evidence(evidence: Score, effect: float) -> np.ndarray:
    """Return the logarithm of the mixture against a difference of zero or less; log(1/α) is at the boundary for α."""
    precision = EFFECT_PRECISION / effect**2
    total = np.asarray(evidence.information, dtype=np.float64) + precision
    shifted = np.maximum(np.asarray(evidence.score) + precision * effect, 0.0)
    found: np.ndarray = (np.log(precision / total) + shifted**2 / total - precision * effect**2) / 2
    return found


def compute_interval(evidence: Score, alphas: tuple[float, float], effect: Number) -> Interval:
    """Return the confidence sequence at this look: both bounds hold at all looks, each with its own probability.

    Args:
        evidence: of all strata.
        alphas: error probabilities of the lower and of the upper bound.
        effect: the planned distance of the difference from each bound's hypothesis.
    """
    information = np.asarray(evidence.information, dtype=np.float64)
    known = information > 0
    divisor = np.where(known, information, 1.0)
    estimate = np.where(known, evidence.score / divisor, 0.0)
    below, above = (np.where(known, compute_boundary(information, alpha, effect) / divisor, np.inf) for alpha in alphas)
    return Interval(estimate, estimate - below, estimate + above)


def _score(difference: Number, variance: Number, rows: Number) -> Score:
    known = (np.asarray(rows) >= MIN_STRATUM_ROWS) & (np.asarray(variance) > 0)
    information = np.where(known, 1 / np.where(known, variance, 1.0), 0.0)
    return Score(difference * information, information)


def _mean(sums: LossSums) -> np.ndarray:
    return np.asarray(sums.total / _at_least_one(sums.rows))


def _variance(sums: LossSums) -> np.ndarray:
    square = sums.squares / _at_least_one(sums.rows)
    spread = square - _mean(sums) ** 2
    spread = np.where(spread > MIN_RELATIVE_VARIANCE * square, spread, 0.0)
    return np.asarray(spread * sums.rows / np.maximum(np.asarray(sums.rows) - 1, 1))


def _at_least_one(rows: Number) -> np.ndarray:
    return np.maximum(np.asarray(rows, dtype=np.float64), 1.0)
