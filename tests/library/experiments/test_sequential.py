"""Confidence sequences agree with the papers and with another implementation, and survive extreme sums."""

import numpy as np
import pytest
import ville
from scipy import special
from ville._boundaries import normal_mixture

from flywheel_ml.experiments.sequential import (
    MIN_STRATUM_ROWS,
    LossSums,
    Score,
    combine_strata,
    compute_boundary,
    compute_interval,
    compute_log_evidence,
    compute_mixture_boundary,
    score_paired,
    score_unpaired,
)


def sums(losses: np.ndarray) -> LossSums:
    return LossSums(len(losses), float(losses.sum()), float((losses**2).sum()))


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("precision", [0.1, 1.0, 250.0])
def test_mixture_around_zero_is_that_of_ville(alpha: float, precision: float) -> None:
    times = np.geomspace(0.01, 1e6, 50)
    expected = normal_mixture(times, alpha, precision)
    assert compute_mixture_boundary(times, alpha, 0.0, precision) == pytest.approx(expected, rel=1e-12)


def test_mixture_around_zero_is_the_asymptotic_confidence_sequence() -> None:
    """The half-width of arXiv:2103.06476, theorem 2.2, with σ = 1 and its ρ² = 1 / precision."""
    times, alpha, rho = np.arange(1, 2000), 0.05, 0.2
    width = np.sqrt(2 * (times * rho**2 + 1) / (times**2 * rho**2) * np.log(np.sqrt(times * rho**2 + 1) / alpha))
    assert compute_mixture_boundary(times, alpha, 0.0, 1 / rho**2) / times == pytest.approx(width, rel=1e-12)


def test_best_precision_is_that_of_howard() -> None:
    """ρ = v / (-W₋₁(-α² / e) - 1), arXiv:1810.08240, section 3: the narrowest mixture around zero at time v."""
    alpha, time = 0.05, 400.0
    best = time / (-float(special.lambertw(-(alpha**2) / np.e, -1).real) - 1)
    at_best = compute_mixture_boundary(time, alpha, 0.0, best)
    assert all(at_best < compute_mixture_boundary(time, alpha, 0.0, best * factor) for factor in (0.9, 1.1))


def test_confidence_sequence_is_that_of_ville_on_one_stream() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 1, size=1000)
    theirs = ville.AsymptoticCS(alpha=0.05, t_opt=500).fit(differences)
    rho = 500 / (-float(special.lambertw(-(0.05**2) / np.e, -1).real) - 1)
    score = score_paired(sums(differences))
    deviation = float(differences.std(ddof=1))
    half = compute_mixture_boundary(score.information, 0.05, 0.0, rho / deviation**2) / score.information
    assert float(half) == pytest.approx(float(theirs.upper_[-1] - theirs.lower_[-1]) / 2, rel=0.01)


def test_boundary_is_where_the_mixture_reaches_one_over_alpha() -> None:
    alpha, effect, time = 0.025, 0.3, 40.0
    precision = 8 / effect**2
    rates = np.linspace(effect - 12 / np.sqrt(precision), effect + 12 / np.sqrt(precision), 20_001)
    weights = np.exp(-precision * (rates - effect) ** 2 / 2) * np.sqrt(precision / (2 * np.pi)) * (rates[1] - rates[0])
    score = float(compute_boundary(time, alpha, effect))
    assert weights @ np.exp(rates * score - rates**2 * time / 2) == pytest.approx(1 / alpha, rel=1e-6)


def test_interval_excludes_zero_exactly_at_the_boundary() -> None:
    bound = float(compute_boundary(50.0, 0.025, 0.4))
    for score, excluded in ((bound + 1e-9, True), (bound - 1e-9, False)):
        interval = compute_interval(Score(score, 50.0), (0.025, 0.015), 0.4)
        assert bool(interval.low > 0) is excluded
        evidence = compute_log_evidence(Score(score, 50.0), 0.4)
        assert bool(evidence > -np.log(0.025)) is excluded
        assert interval.low < interval.estimate < interval.high


def test_evidence_never_grows_on_the_good_side() -> None:
    scores = np.linspace(-1e4, 100.0, 500)
    evidence = compute_log_evidence(Score(scores, 50.0), 0.4)
    assert np.all(np.diff(evidence) >= 0)
    assert np.all(evidence[scores < 0] < 0)


def test_strata_are_weighted_by_information() -> None:
    rng = np.random.default_rng(1)
    parts = [(rng.normal(0, 1, 400), rng.normal(0.5, 1, 100)), (rng.normal(3, 2, 90), rng.normal(3.5, 2, 90))]
    found = combine_strata(score_unpaired(sums(a), sums(b)) for a, b in parts)
    difference, deviation = float(found.score / found.information), float(np.sqrt(found.information)) ** -1
    assert abs(difference - 0.5) < 3 * deviation


def test_pooled_rates_would_decide_wrongly() -> None:
    """Simpson's paradox: outcomes were worse while the challenger's share was small."""
    early = LossSums(9500, 950, 950), LossSums(500, 60, 60)
    late = LossSums(5000, 100, 100), LossSums(5000, 150, 150)
    strata = combine_strata(score_unpaired(*one) for one in (early, late))
    interval = compute_interval(strata, (0.025, 0.015), 0.01)
    champion, challenger = (LossSums(*map(sum, zip(*pair, strict=True))) for pair in zip(early, late, strict=True))
    wrong = compute_interval(score_unpaired(champion, challenger), (0.025, 0.015), 0.01)
    assert interval.low > 0
    assert wrong.high < 0


def test_equal_variants_swap_to_the_opposite() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(0, 1, 500), rng.normal(0, 1, 500)
    one, other = ((each - each.mean()) / each.std() for each in (one, other))
    there, back = score_unpaired(sums(one), sums(other + 0.1)), score_unpaired(sums(other + 0.1), sums(one))
    assert there.score == pytest.approx(-back.score)
    assert there.information == pytest.approx(back.information)
    mirrored = [score_paired(sums(sign * one - 0.05 * sign)) for sign in (1, -1)]
    assert mirrored[0].score == pytest.approx(-mirrored[1].score)


@pytest.mark.parametrize("rows", [0, 1, 2, MIN_STRATUM_ROWS - 1])
def test_few_rows_carry_no_information(rows: int) -> None:
    few, many = LossSums(rows, rows, rows), LossSums(10_000, 100, 100)
    for score in (score_unpaired(few, many), score_unpaired(many, few), score_paired(few)):
        assert score.information == 0
        assert score.score == 0
    interval = compute_interval(score_unpaired(many, few), (0.025, 0.015), 0.01)
    assert (interval.low, interval.high) == (-np.inf, np.inf)


def test_an_empty_stratum_changes_nothing() -> None:
    one = score_unpaired(LossSums(1000, 50, 50), LossSums(1000, 60, 60))
    both = combine_strata([one, score_unpaired(LossSums(), LossSums())])
    assert both == one


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_constant_losses_decide_only_with_enough_rows(rate: float) -> None:
    """Equal outcomes say little about a margin that one row in a hundred would reach."""
    for rows, decided in ((100, False), (50_000, True)):
        all_equal = LossSums(rows, rate * rows, rate * rows)
        for score in (score_unpaired(all_equal, all_equal, 0.01), score_paired(LossSums(rows, 0, 0), 0.01)):
            interval = compute_interval(score, (0.025, 0.015), 0.01)
            assert bool(interval.high < 0.01) is decided
            assert interval.low < 0
    assert score_unpaired(all_equal, all_equal).information == 0


def test_large_means_do_not_become_information() -> None:
    """Sums of losses near 1e9 that are all equal: what is left of their squares is rounding."""
    losses = np.full(1000, 1e9) + 1e-3
    assert score_unpaired(sums(losses), sums(losses)).information == 0


def test_functions_work_on_arrays_of_looks() -> None:
    rng = np.random.default_rng(3)
    hits = rng.binomial(100, 0.1, size=(2, 50)).cumsum(axis=1)
    rows = 100 * np.arange(1, 51)
    looks = score_unpaired(LossSums(rows, hits[0], hits[0]), LossSums(rows, hits[1], hits[1]))
    last = score_unpaired(LossSums(5000, hits[0, -1], hits[0, -1]), LossSums(5000, hits[1, -1], hits[1, -1]))
    assert np.asarray(looks.score)[-1] == pytest.approx(last.score)
    assert np.asarray(looks.information)[-1] == pytest.approx(last.information)
