"""Confidence intervals of metrics, in closed form."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from flywheel_ml.core import metrics
from flywheel_ml.core.bundle import Manifest
from flywheel_ml.core.contract import Task

MIN_ROWS_PER_CLASS = 10
"""With fewer rows of the rarer class, the interval of the ROC AUC is meaningless."""


class Interval(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def compute_intervals(
    manifest: Manifest, truth: np.ndarray, output: np.ndarray, confidence: float
) -> dict[str, Interval]:
    """Compute confidence intervals in closed form, in one pass and without a seed.

    ROC AUC after DeLong et al. 1988, "Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves"; shares after Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference"; losses and errors, which are means over rows, by the central limit theorem.
    """
    if len(truth) < 2:
        return {}
    if manifest.task == "binary":
        assert manifest.threshold is not None
        return _compute_binary_intervals(truth == 1, output[:, -1], manifest.threshold, confidence)
    if manifest.task == "multiclass":
        place = truth.astype(np.intp)
        likely = np.clip(output[np.arange(len(place)), place].astype(np.float64), np.finfo(np.float64).eps, None)
        right = int((output.argmax(axis=1) == place).sum())
        return {
            "accuracy": wilson_interval(right, len(place), confidence),
            "log_loss": _mean_interval(-np.log(likely), confidence),
        }
    held = int(((output[:, 1] <= truth) & (truth <= output[:, 2])).sum())
    return {
        "mae": _mean_interval(np.abs(output[:, 0] - truth), confidence),
        "coverage": wilson_interval(held, len(truth), confidence),
    }


def compute_deciding_interval(task: Task, truth: np.ndarray, output: np.ndarray, confidence: float) -> Interval | None:
    """Compute the interval of the metric that decides a verdict: ROC AUC, accuracy, or mean absolute error.

    Args:
        task: the task.
        truth: float [n_rows] as in `metrics.compute_metrics`.
        output: float [n_rows, k] as in `metrics.compute_metrics`.
        confidence: confidence level.

    Returns:
        None if there are too few rows.
    """
    if len(truth) < 2:
        return None
    if task == "binary":
        positives = int(truth.sum())
        if min(positives, len(truth) - positives) < MIN_ROWS_PER_CLASS:
            return None
        return delong_interval(truth == 1, output[:, -1], confidence)
    if task == "multiclass":
        return wilson_interval(int((output.argmax(axis=1) == truth).sum()), len(truth), confidence)
    return _mean_interval(np.abs(output[:, 0] - truth), confidence)


def _compute_binary_intervals(
    labels: np.ndarray, scores: np.ndarray, threshold: float, confidence: float
) -> dict[str, Interval]:
    hits, alarms, _, rejected = (int(count) for count in metrics.count_confusion(labels, scores, threshold))
    positives, called = int(labels.sum()), hits + alarms
    truth = labels.astype(np.float64)
    likely = np.clip(np.where(labels, scores, 1 - scores.astype(np.float64)), np.finfo(np.float64).eps, None)
    found = {
        "prevalence": wilson_interval(positives, len(labels), confidence),
        "accuracy": wilson_interval(hits + rejected, len(labels), confidence),
        "brier": _mean_interval((scores.astype(np.float64) - truth) ** 2, confidence),
        "log_loss": _mean_interval(-np.log(likely), confidence),
    }
    if called:
        found["precision"] = wilson_interval(hits, called, confidence)
    if positives:
        found["recall"] = wilson_interval(hits, positives, confidence)
    if min(positives, len(labels) - positives) >= MIN_ROWS_PER_CLASS:
        found["roc_auc"] = delong_interval(labels, scores, confidence)
    return found


def delong_interval(labels: np.ndarray, scores: np.ndarray, confidence: float) -> Interval:
    """Return the ROC AUC and its normal interval, clipped to [0, 1], by the midranks of Sun & Xu 2014 in O(n log n)."""
    positive, negative = scores[labels], scores[~labels]
    ranks = stats.rankdata(np.concatenate((positive, negative)).astype(np.float64))
    above = (ranks[: len(positive)] - stats.rankdata(positive)) / len(negative)
    below = 1 - (ranks[len(positive) :] - stats.rankdata(negative)) / len(positive)
    error = float(np.sqrt(above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)))
    area, half = float(above.mean()), _z_score(confidence) * error
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def wilson_interval(hits: int, rows: int, confidence: float) -> Interval:
    """Return a share and its score interval."""
    low, high = stats.binomtest(hits, rows).proportion_ci(confidence, method="wilson")
    return Interval(hits / rows, float(low), float(high))


def _mean_interval(values: np.ndarray, confidence: float) -> Interval:
    # `stats.norm.interval` returns NaN if all values are equal.
    mean, half = float(values.mean()), _z_score(confidence) * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return Interval(mean, max(0.0, mean - half), mean + half)


def _z_score(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))
