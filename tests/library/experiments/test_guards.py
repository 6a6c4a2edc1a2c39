"""Each guard is an e-process: its mean is at most 1 if nothing is wrong, and it grows if something is."""

import numpy as np
import pytest
from scipy import stats
from ville import BernoulliTest

from flywheel_ml.experiments import guards
from flywheel_ml.experiments.evidence import LATENCY_EDGES, LATENCY_RATIO, AlphaBudget

LIMIT = {name: -np.log(value) for name, value in AlphaBudget().model_dump().items()}


def histogram(seconds: list[float]) -> np.ndarray:
    return np.bincount(np.searchsorted(LATENCY_EDGES, seconds), minlength=len(LATENCY_EDGES) + 1)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("events", [0, 1, 7, 60])
def test_mean_evidence_of_equal_error_rates_is_one(share: float, events: int) -> None:
    ours = np.arange(events + 1)
    rows = np.broadcast_to([1e6 * (1 - share), 1e6 * share], (events + 1, 2))
    evidence = guards.log_attribution(np.stack((events - ours, ours), axis=1), rows, share)
    assert stats.binom.pmf(ours, events, share) @ np.exp(evidence) == pytest.approx(1.0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.95, 0.05), (0.2, 0.3, 0.5)])
def test_mean_evidence_of_planned_shares_is_one(shares: tuple[float, ...]) -> None:
    rows = np.array([(a, b, 30 - a - b) for a in range(31) for b in range(31 - a)])
    rows = rows if len(shares) == 3 else np.array([(30 - a, a) for a in range(31)])
    found = stats.multinomial.pmf(rows, 30, shares) @ np.exp(guards.log_sample_ratio(rows, shares))
    assert found == pytest.approx(1.0)


def test_sample_ratio_decides_like_the_mixture_of_ville() -> None:
    """Another prior, so other values: both flag a broken ratio, and neither a correct one."""
    rng = np.random.default_rng(0)
    for actual, flagged in ((0.5, False), (0.58, True)):
        stream = rng.random(5000) < actual
        theirs = BernoulliTest(0.5, alpha=0.001).fit(stream.astype(float))
        ours = guards.log_sample_ratio(np.array([(~stream).cumsum(), stream.cumsum()]).T, (0.5, 0.5))
        assert bool(theirs.rejected_) is bool((ours >= LIMIT["sample_ratio"]).any()) is flagged


def test_a_challenger_that_always_fails_is_found_in_a_few_rows() -> None:
    evidence = guards.log_attribution(np.array([0, 4]), np.array([76, 4]), 0.05)
    assert evidence >= LIMIT["errors"]


def test_errors_that_both_have_are_no_evidence() -> None:
    for errors in ([9500, 500], [950, 50], [1, 0], [0, 0]):
        assert guards.log_attribution(np.array(errors), np.array([9500, 500]), 0.05) < 1.0


def test_errors_up_to_the_tolerated_ratio_are_no_evidence() -> None:
    errors, rows = np.array([200, 390]), np.array([20_000, 20_000])
    assert guards.log_attribution(errors, rows, 0.5) > LIMIT["errors"]
    assert guards.log_attribution(errors, rows, 0.5, ratio=2.0) < 1.0


def test_more_rows_than_planned_are_not_errors() -> None:
    """The share is 60% instead of 50%, so 60% of the errors are the challenger's; that is for the sample ratio."""
    errors, rows = np.array([4_000, 6_000]), np.array([40_000, 60_000])
    assert guards.log_attribution(errors, rows, 0.5) < 1.0
    assert guards.log_sample_ratio(rows, (0.5, 0.5)) > LIMIT["sample_ratio"]


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_seven_of_ten_rows_a_hundred_times_slower_are_found(share: float) -> None:
    """A published canary judge let this pass. With 10 rows of each the evidence is too small; with 20 it is not."""
    for rows, found in ((10, share < 0.5), (20, True)):
        champion = histogram([0.01] * round(rows * (1 - share) / share))
        challenger = histogram(([1.0] * 7 + [0.01] * 3) * (rows // 10))
        evidence = guards.log_latency(np.stack((champion, challenger)), share)
        assert bool(evidence >= LIMIT["latency"]) is found


def test_a_slow_tail_is_found_and_a_slightly_slower_model_is_not() -> None:
    rng = np.random.default_rng(1)
    base = rng.lognormal(np.log(0.01), 0.5, 4000)
    tail = np.where(rng.random(2000) < 0.05, 1.0, rng.lognormal(np.log(0.01), 0.5, 2000))
    slightly = 1.2 * rng.lognormal(np.log(0.01), 0.5, 2000)
    for challenger, found in ((tail, True), (slightly, False)):
        counts = np.stack((histogram(list(base)), histogram(list(challenger))))
        assert bool(guards.log_latency(counts, 1 / 3) >= LIMIT["latency"]) is found


def test_latency_of_no_rows_is_no_evidence() -> None:
    empty = np.zeros((2, len(LATENCY_EDGES) + 1))
    assert guards.log_latency(empty, 0.5) == pytest.approx(0.0)
    one_sided = empty.copy()
    one_sided[0, 5] = 1000
    assert guards.log_latency(one_sided, 0.5) < 1.0


def test_a_quiet_stratum_does_not_hide_a_later_one() -> None:
    quiet, loud = np.array(-500.0), np.array(20.0)
    assert guards.combine_strata([quiet, loud]) == pytest.approx(20.0 + np.log(0.9) + np.log(0.1))
    assert guards.combine_strata([]) == 0.0


def test_guards_keep_their_level_at_every_look() -> None:
    """2,000 runs with a look every 50 rows; the limit is the 99.99% quantile of the binomial with the guard's α."""
    runs, looks, share = 2000, 60, 0.25
    rng = np.random.default_rng(2)
    ours = rng.binomial(50, share, size=(runs, looks))
    rows = np.stack((50 - ours, ours), axis=-1)
    for rate in (0.01, 0.5, 0.99):
        errors = rng.binomial(rows, rate).cumsum(axis=1)
        evidence = guards.log_attribution(errors, rows.cumsum(axis=1), share)
        flagged = int((evidence >= np.log(1 / 0.05)).any(axis=1).sum())
        assert flagged <= stats.binom.ppf(0.9999, runs, 0.05), rate
    flagged = int((guards.log_sample_ratio(rows.cumsum(axis=1), (0.75, 0.25)) >= np.log(1 / 0.05)).any(axis=1).sum())
    assert flagged <= stats.binom.ppf(0.9999, runs, 0.05)


def test_latency_up_to_the_tolerance_keeps_its_level() -> None:
    """The challenger is slower by exactly the ratio of the edges: the worst case of the guard's hypothesis."""
    runs, looks = 300, 15
    rng = np.random.default_rng(3)
    edges = np.log(np.array(LATENCY_EDGES))
    shares = [
        np.diff(stats.norm.cdf(edges, np.log(0.01 * factor), 0.5), prepend=0.0, append=1.0)
        for factor in (1.0, LATENCY_RATIO)
    ]
    ours = rng.binomial(200, 0.25, size=(runs, looks))
    counts = np.stack([rng.multinomial(200 - ours, shares[0]), rng.multinomial(ours, shares[1])], axis=2)
    evidence = guards.log_latency(counts.cumsum(axis=1), 0.25)
    assert int((evidence >= np.log(1 / 0.05)).any(axis=1).sum()) <= stats.binom.ppf(0.9999, runs, 0.05)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("rows", [1, 50, 400])
def test_mean_evidence_at_a_tolerated_error_rate_is_one_at_most(rate: float, rows: int) -> None:
    events = np.arange(rows + 1)
    found = guards.log_excess(events, np.full(rows + 1, rows), rate)
    assert np.exp(stats.binom.logpmf(events, rows, rate) + found).sum() == pytest.approx(1.0)
    assert np.exp(stats.binom.logpmf(events, rows, rate / 2) + found).sum() <= 1.0


def test_tolerated_errors_are_no_evidence_and_more_are() -> None:
    """Five late rows of 300 may be a busy machine, nobody else fails; a model that always fails needs three rows."""
    limit = LIMIT["errors"]
    assert guards.log_errors(np.array((0, 5)), np.array((5700, 300)), 0.05, 1.0, rate=0.0) > limit
    assert guards.log_errors(np.array((0, 5)), np.array((5700, 300)), 0.05, 1.0, rate=0.01) < limit
    assert guards.log_errors(np.array((0, 3)), np.array((57, 3)), 0.05, 1.0, rate=0.01) > limit
    assert guards.log_errors(np.array((95, 5)), np.array((95, 5)), 0.05, 1.0, rate=0.01) < limit
    assert guards.log_errors(np.array((0, 30)), np.array((5000, 300)), 0.05, 1.0, rate=0.01) > limit
