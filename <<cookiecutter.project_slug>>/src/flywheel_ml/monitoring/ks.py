"""The two-sample Kolmogorov-Smirnov test on counts in bins.

The textbook p-value assumes continuous values and is too large when many values are equal (an hour, a count, an amount
of rain that is mostly zero). At the bin edges, the difference of the two distribution functions tends to a Brownian
bridge observed at those points. The p-value here is the probability that such a bridge reaches the same distance: Wood
& Altavela 1978, "Large-Sample Results for Kolmogorov-Smirnov Statistics for Discrete Distributions" (Biometrika 65).
With many narrow bins it equals the textbook p-value.
"""

import numpy as np
from scipy import special

GRID_NODES = 201
MAX_SCALED_DISTANCE = 4.0
"""Above this scaled distance the p-value is below 3e-14, so the continuous formula is used."""
MIN_SPACING = 1e-3
"""Closer points on [0, 1] are merged: smaller steps would fall between the grid nodes."""


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of two distribution functions at the bin edges; a, b: counts [n_bins]."""
    return float(_gaps(a, b).max())


def find_widest_gap(a: np.ndarray, b: np.ndarray) -> int:
    """Return the bin at whose upper edge the two distribution functions differ most."""
    return int(_gaps(a, b)[:-1].argmax())


def ks_p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Return the asymptotic p-value: the probability of this distance if both counts [n_bins] share a distribution."""
    n_a, n_b = int(a.sum()), int(b.sum())
    scaled = ks_distance(a, b) * np.sqrt(n_a * n_b / (n_a + n_b))
    if scaled >= MAX_SCALED_DISTANCE:
        return float(special.kolmogorov(scaled))
    times = np.cumsum(a + b)[:-1] / (n_a + n_b)
    return bridge_exceedance(float(scaled), times)


def bridge_exceedance(bound: float, times: np.ndarray) -> float:
    """Return the probability that a Brownian bridge on [0, 1] reaches ±bound at one of the times (ascending).

    Propagates on a grid the density of a Brownian motion that stops when it is outside ±bound at one of the times, and
    conditions on its return to 0 at time 1.
    """
    if bound <= 0:
        return 1.0
    times = _space_out(times)
    if not len(times):
        return 1.0
    grid, step = np.linspace(-bound, bound, GRID_NODES, retstep=True)
    weights = np.full(GRID_NODES, step)
    weights[[0, -1]] /= 2
    density = _gauss(grid, times[0])
    for gap in np.diff(times):
        reach = min(GRID_NODES - 1, int(np.ceil(8 * np.sqrt(gap) / step)))
        kernel = _gauss(step * np.arange(-reach, reach + 1), gap)
        density = np.convolve(density * weights, kernel)[reach : reach + GRID_NODES]
    inside = (density * weights * _gauss(grid, 1 - times[-1])).sum() / _gauss(np.zeros(1), 1.0)[0]
    return float(np.clip(1 - inside, 0.0, 1.0))


def _gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    gaps: np.ndarray = np.abs(np.cumsum(a) / a.sum() - np.cumsum(b) / b.sum())
    return gaps


def _gauss(x: np.ndarray, variance: float) -> np.ndarray:
    density: np.ndarray = np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return density


def _space_out(times: np.ndarray) -> np.ndarray:
    kept: list[float] = []
    for time in times:
        if MIN_SPACING <= time <= 1 - MIN_SPACING and (not kept or time - kept[-1] >= MIN_SPACING):
            kept.append(float(time))
    return np.array(kept)
