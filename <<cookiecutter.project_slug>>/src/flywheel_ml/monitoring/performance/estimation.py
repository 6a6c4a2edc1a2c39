"""Estimates the performance of a classifier without labels, from its calibrated scores (CBPE).

Confidence-based performance estimation: a row with the calibrated score p is a positive with the probability p, so
each row adds p and 1 - p to the cells of an expected confusion matrix. After Białek et al. 2024, "Estimating Model
Performance Under Covariate Shift Without Labels" (arXiv 2401.08348), and the documentation of NannyML, against which
it is validated. The estimate is advisory and decides nothing: its assumption cannot be checked without labels.
"""

from collections.abc import Mapping

import numpy as np
from scipy.interpolate import PchipInterpolator

from flywheel_ml.core.bundle import Manifest
from flywheel_ml.core.profile import Counts
from flywheel_ml.utils import config_model

GRID_CELLS = 4000
"""Cells of [0, 1] that the scores are spread over."""
ASSUMPTION = (
    "It assumes that the scores are calibrated on these rows and that the meaning of the inputs has not changed "
    "(no concept drift). It cannot see a change of what the inputs mean, and it never decides the verdict."
)
NO_REGRESSION = "Without labels, the error of a regression is not estimated: a predicted number has no confidence."


class EstimatedMetric(config_model.StrictModel):
    """An expected metric, its value on the test rows, and its value on the labelled rows of the window, if known."""

    value: float
    reference: float | None = None
    observed: float | None = None


class Estimate(config_model.StrictModel):
    """Expected metrics of all rows that the model answered; `note` states the assumption, or why there are none."""

    rows: int
    metrics: dict[str, EstimatedMetric]
    note: str


def estimate_performance(scores: Counts, manifest: Manifest, observed: Mapping[str, float]) -> Estimate:
    """Estimate the metrics of the rows that a model answered, from the counts of their scores.

    Args:
        scores: counts of the model's output, in the bins of the reference.
        manifest: task, threshold and test metrics.
        observed: metrics of the labelled rows.
    """
    if manifest.task == "regression":
        return Estimate(rows=scores.present, metrics={}, note=NO_REGRESSION)
    values, weights = spread_bins(scores, manifest.threshold)
    if not scores.present:
        return Estimate(rows=0, metrics={}, note="The window has no score to estimate from.")
    if manifest.task == "binary":
        assert manifest.threshold is not None
        found = compute_expected_metrics(values, weights, manifest.threshold)
    else:  # The score is the probability of the class answered.
        found = {"accuracy": float(np.average(values, weights=weights))}
    tested = manifest.metrics.get("test", {})
    metrics = {
        name: EstimatedMetric(value=value, reference=tested.get(name), observed=observed.get(name))
        for name, value in found.items()
    }
    return Estimate(rows=scores.present, metrics=metrics, note=ASSUMPTION)


def compute_expected_metrics(scores: np.ndarray, weights: np.ndarray, threshold: float) -> dict[str, float]:
    """Compute the expected metrics of a binary classifier with calibrated scores.

    Ratios are ratios of expectations, as in NannyML. ROC AUC is the share of expected pairs of a positive and a
    negative whose scores are in the right order; equal scores count half.

    Args:
        scores: probabilities of the positive class, float [n], in ascending order.
        weights: number of rows with each score, float [n].
        threshold: scores from it on are predicted positive.
    """
    called = scores >= threshold
    positives, negatives = weights * scores, weights * (1 - scores)
    hits, false_alarms = float(positives[called].sum()), float(negatives[called].sum())
    misses, rejected = float(positives[~called].sum()), float(negatives[~called].sum())
    rows = float(weights.sum())
    found = {
        "accuracy": (hits + rejected) / rows,
        "prevalence": (hits + misses) / rows,
        "brier": float((weights * scores * (1 - scores)).sum()) / rows,
    }
    if hits + false_alarms > 0:
        found["precision"] = hits / (hits + false_alarms)
    if hits + misses > 0:
        found["recall"] = hits / (hits + misses)
    if hits > 0:
        found["f1"] = 2 * hits / (2 * hits + false_alarms + misses)
    pairs = float(positives.sum() * negatives.sum())
    if pairs > 0:
        below = np.cumsum(negatives) - negatives
        found["roc_auc"] = float((positives * (below + negatives / 2)).sum()) / pairs
    return found


def spread_bins(scores: Counts, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending probabilities and the number of rows with each, from counts in bins.

    A bin of one repeated value stays a point. Between the others, the distribution function is a monotone cubic
    (Fritsch & Carlson 1980, "Monotone Piecewise Cubic Interpolation"), because a window's scores may crowd at one side
    of a wide bin of the reference. No cell of the result contains the threshold.
    """
    edges, counts = np.array(scores.edges, dtype=np.float64), np.array(scores.counts, dtype=np.float64)
    is_point = np.zeros(len(counts), dtype=bool)
    is_point[1:-1] = np.nextafter(edges[:-1], np.inf) == edges[1:]
    points, spread = np.append(edges, 1.0)[is_point], np.where(is_point, 0.0, counts)
    # Scores are float32, in which the two edges around a point are one.
    ends = np.concatenate(([min(0.0, edges[0])], edges, [max(1.0, edges[-1])])).astype(np.float32)
    knots, first = np.unique(ends.astype(np.float64), return_index=True)
    cumulative = np.concatenate(([0.0], np.cumsum(spread)))[np.append(first[1:] - 1, len(spread))]
    cumulative = np.concatenate(([0.0], cumulative[1:]))
    grid = np.union1d(np.linspace(0, 1, GRID_CELLS + 1), [] if threshold is None else [threshold])
    below = PchipInterpolator(knots, cumulative)(np.clip(grid, knots[0], knots[-1]))
    values = np.concatenate(((grid[:-1] + grid[1:]) / 2, np.clip(points, 0.0, 1.0)))
    weights = np.concatenate((np.clip(np.diff(below), 0.0, None), counts[is_point]))
    order = np.argsort(values, kind="stable")
    kept = order[weights[order] > 0]
    return values[kept], weights[kept]
