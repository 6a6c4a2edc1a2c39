"""The binned p-value matches the textbook for continuous values and is correct for tied values."""

import numpy as np
import pytest
from scipy import special, stats

from flywheel_ml.monitoring import ks


def binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def test_ks_distance_on_256_bins_is_within_half_a_percent() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.1, 0.5):
        reference, window = rng.normal(size=4000), rng.normal(shift, 1, size=1500)
        edges = np.unique(np.quantile(reference, np.linspace(0, 1, 257), method="inverted_cdf"))
        found = ks.ks_distance(binned(reference, edges), binned(window, edges))
        assert found == pytest.approx(stats.ks_2samp(reference, window).statistic, abs=0.005)


@pytest.mark.parametrize("bound", [0.8, 1.2, 1.6, 2.0])
def test_ks_p_value_on_narrow_bins_matches_the_textbook(bound: float) -> None:
    # Seen at 400 points the bridge strays a little less far than seen everywhere (Broadie et al. 1997).
    seen = special.kolmogorov(bound + 0.5826 / np.sqrt(400))
    assert ks.bridge_exceedance(bound, np.arange(1, 400) / 400) == pytest.approx(seen, rel=0.02)


@pytest.mark.parametrize(("time", "bound"), [(0.5, 0.9), (0.9, 0.7), (0.05, 0.3)])
def test_ks_p_value_at_one_point_is_normal(time: float, bound: float) -> None:
    expected = 2 * stats.norm.sf(bound / np.sqrt(time * (1 - time)))
    assert ks.bridge_exceedance(bound, np.array([time])) == pytest.approx(expected, rel=0.005)


def test_ks_false_alarm_rate_holds_for_tied_values() -> None:
    rng = np.random.default_rng(0)
    shares = [0.9, 0.04, 0.03, 0.02, 0.01]
    pairs = rng.multinomial(5000, shares, size=1500), rng.multinomial(1000, shares, size=1500)
    found = [ks.ks_p_value(a, b) for a, b in zip(*pairs, strict=True)]
    assert 0.03 < np.mean(np.array(found) <= 0.05) < 0.07
    textbook = [stats.kstwo.sf(ks.ks_distance(a, b), 833) for a, b in zip(*pairs, strict=True)]
    assert np.mean(np.array(textbook) <= 0.05) < 0.005


def test_ks_p_value_of_equal_and_disjoint_counts() -> None:
    counts = np.full(10, 100)
    assert ks.ks_p_value(counts, counts) == 1.0
    assert ks.ks_p_value(np.array([500, 0]), np.array([0, 500])) < 1e-12
    assert ks.ks_p_value(np.array([500, 0]), np.array([500, 0])) == 1.0


@pytest.mark.parametrize(("a", "b"), [((600, 400), (130, 70)), ((2500, 2500), (540, 460)), ((30, 4970), (12, 988))])
def test_ks_p_value_of_two_values_is_that_of_the_chi_square_test(a: tuple[int, int], b: tuple[int, int]) -> None:
    expected = stats.chi2_contingency([a, b], correction=False).pvalue
    assert ks.ks_p_value(np.array(a), np.array(b)) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("shares", [[0.6, 0.1, 0.1, 0.1, 0.05, 0.05], [0.05] * 20, [0.02, 0.9, 0.04, 0.04]])
@pytest.mark.parametrize("moved", [0.0, 0.03])
def test_ks_p_value_of_tied_values_matches_permutations(shares: list[float], moved: float) -> None:
    rng = np.random.default_rng(0)
    a = rng.multinomial(5000, shares)
    b = rng.multinomial(1000, [shares[0] + moved, *shares[1:-1], shares[-1] - moved])
    parts = stats.multivariate_hypergeom.rvs(a + b, int(b.sum()), size=20_000, random_state=rng)
    distances = np.abs(np.cumsum(parts / b.sum() - (a + b - parts) / a.sum(), axis=1)).max(axis=1)
    expected = np.mean(distances >= ks.ks_distance(a, b) - 1e-12)
    # Four standard errors of the permutations; the asymptotic formula is off by the width of a step.
    assert ks.ks_p_value(a, b) == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 20_000) + 0.02)
