"""Metrics of classification and regression, used by evaluation, monitoring and experiments.

`compute_metrics` takes any task; its parts are for one. Every result is a plain float and finite; a measure that the
rows leave undefined (no positive row, no negative row, no row at all) is absent. Nothing here uses threads, so the bits
do not depend on their number.
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix_at_thresholds,
    f1_score,
    log_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from flywheel_ml.core.contract import Task

CALIBRATION_BINS = 15
MAX_POINTS = 200

Points = list[dict[str, float]]

HEADLINE: dict[Task, str] = {"binary": "roc_auc", "multiclass": "roc_auc", "regression": "r2"}
"""The main metric of gates and tables; higher is better."""
LOSS: dict[Task, str] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}
"""The loss metric; lower is better."""


class Confusion(NamedTuple):
    """Counts of right and wrong answers at one threshold, or the sums of their weights."""

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float


class Reliability(NamedTuple):
    """Calibration in bins of about equally many rows: mean score, share of positives and rows, each [n_bins]."""

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


class DecisionRule(NamedTuple):
    """Decision rule of a binary classifier: the threshold, and the costs of a false positive and a false negative."""

    threshold: float
    false_positive: float = 1.0
    false_negative: float = 1.0


def compute_metrics(
    task: Task,
    y_true: np.ndarray,
    output: np.ndarray,
    decision: DecisionRule | None = None,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute all metrics of a model's output for any task.

    Args:
        y_true: float [n_rows], the index of the true class or the true value; see `Contract.encode_target`.
        output: float [n_rows, n_classes] of probabilities, or [n_rows, 3]: value, low and high end of its interval.
        decision: needed for binary classification.
        weights: float [n_rows], the sample weights; None if all rows count equally.
    """
    if task == "regression":
        return compute_regression_metrics(y_true, output, weights)
    if task == "multiclass":
        return compute_multiclass_metrics(y_true.astype(np.intp), output, weights)
    assert decision is not None
    return compute_binary_metrics(y_true, output[:, -1], *decision, weights=weights)


def compute_loss(task: Task, y_true: np.ndarray, answers: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Compute only the metric in `LOSS`, from outputs without a decision or an interval.

    Args:
        y_true: float [n_rows], as of `compute_metrics`.
        answers: float [n_rows, n_classes] of probabilities, or [n_rows, 1] of values.
    """
    if task == "regression":
        return float(np.sqrt(np.average((answers[:, 0].astype(np.float64) - y_true) ** 2, weights=weights)))
    likely = answers[np.arange(len(y_true)), y_true.astype(np.intp)].astype(np.float64)
    return float(np.average(-np.log(np.clip(likely, np.finfo(np.float64).eps, None)), weights=weights))


def extract_scores(task: Task, output: np.ndarray) -> np.ndarray:
    """Extract one score per row, float [n_rows], for profiles and sorting.

    This is the probability of the positive class (binary), of the most likely class (multiclass), or the value.
    """
    if task == "regression":
        return output[:, 0]
    found: np.ndarray = output[:, -1] if task == "binary" else output.max(axis=1)
    return found


def compute_regression_metrics(
    y_true: np.ndarray, output: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """mae, rmse, bias (mean of value − y_true), coverage and width of the intervals; r2 if the true values vary.

    Args:
        y_true: float [n_rows].
        output: float [n_rows, 3]: value, low and high end of its interval.
    """
    if len(y_true) == 0:
        return {}
    value, low, high = output.astype(np.float64).T
    error = value - y_true

    def mean(values: np.ndarray) -> float:
        return float(np.average(values, weights=weights))

    measures = {
        "mae": mean(np.abs(error)),
        "rmse": np.sqrt(mean(error**2)),
        "bias": mean(error),
        "coverage": mean((low <= y_true) & (y_true <= high)),
        "interval_width": mean(high - low),
    }
    spread = mean((y_true - mean(y_true)) ** 2)
    if spread > 0:
        measures["r2"] = 1 - mean(error**2) / spread
    return {name: float(found) for name, found in measures.items()}


def compute_multiclass_metrics(
    y_true: np.ndarray, output: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """accuracy, log_loss, macro_f1, lowest_recall and calibration_error of the answers; roc_auc where it is defined.

    ROC AUC is each class against the rest, averaged over the classes that occur, if there are at least two (Fawcett
    2006, "An introduction to ROC analysis"); macro F1 averages over the classes that occur, and the lowest
    recall is that of the one among them which is found least.

    Args:
        y_true: int [n_rows], the place of the true class.
        output: float [n_rows, n_classes] of probabilities.
    """
    if len(y_true) == 0:
        return {}
    output = output.astype(np.float64)
    output = output / output.sum(axis=1, keepdims=True)  # float32 sums to 1 only nearly.
    answer = output.argmax(axis=1)
    present = np.unique(y_true)
    right = answer == y_true
    counted = np.ones(len(y_true)) if weights is None else weights
    measures = {
        "accuracy": np.average(right, weights=counted),
        "log_loss": log_loss(y_true, output, labels=np.arange(output.shape[1]), sample_weight=weights),
        "macro_f1": f1_score(y_true, answer, labels=present, average="macro", zero_division=0.0, sample_weight=weights),
        "lowest_recall": min(np.average(right[y_true == at], weights=counted[y_true == at]) for at in present),
        "calibration_error": calibration_error(right, output.max(axis=1), weights=weights),
    }
    if len(present) > 1:
        measures["roc_auc"] = np.mean(
            [roc_auc_score(y_true == place, output[:, place], sample_weight=weights) for place in present]
        )
    return {name: float(found) for name, found in measures.items()}


def conformal_half_width(
    y_true: np.ndarray, values: np.ndarray, level: float, weights: np.ndarray | None = None
) -> float:
    """Half the width of an interval around a value that contains the true value in a share `level` of new rows.

    Split conformal prediction on rows that the model has not seen: the ⌈(n + 1) · level⌉-th smallest absolute error,
    after Lei et al. 2018, "Distribution-Free Predictive Inference for Regression". The largest, where there are too
    few rows for the level. With weights the new row weighs as the average one does (Tibshirani et al. 2019,
    "Conformal Prediction Under Covariate Shift").
    """
    errors = np.abs(values.astype(np.float64) - y_true)
    if weights is None or (weights == weights[0]).all():
        place = min(int(np.ceil((len(errors) + 1) * level)), len(errors)) - 1
        return float(np.sort(errors)[place])
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(weights[order]) >= level * (weights.sum() + weights.mean())
    return float(errors[order][np.argmax(reached) if reached.any() else -1])


def compute_binary_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    false_positive: float = 1.0,
    false_negative: float = 1.0,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute all metrics of a binary classifier.

    Args:
        labels: bool or 0/1 [n_rows].
        scores: float [n_rows]; a row counts as positive where its score is at least `threshold`.
        threshold: the decision threshold.
        false_positive: cost of a false positive.
        false_negative: cost of a false negative.

    Returns:
        prevalence, accuracy, brier, log_loss, calibration_error, recentered_calibration_error (what is left of it
        once the scores' mean is that of the rows: the rest is a shift of the base rate) and mean_cost (cost per row)
        of any rows;
        recall and average_precision where there is a positive row, roc_auc where there are both kinds,
        precision and f1 where they are defined.
    """
    n_rows = len(labels)
    if n_rows == 0:
        return {}
    counts = count_confusion(labels, scores, threshold, weights)
    total = sum(counts)
    y_true, scores = _to_integers(labels), scores.astype(np.float64)
    positives = counts.true_positive + counts.false_negative
    called = counts.true_positive + counts.false_positive
    measures = {
        "prevalence": positives / total,
        "accuracy": (counts.true_positive + counts.true_negative) / total,
        "brier": brier_score_loss(y_true, scores, labels=[0, 1], pos_label=1, sample_weight=weights),
        "log_loss": log_loss(y_true, scores, labels=[0, 1], sample_weight=weights),
        "calibration_error": calibration_error(y_true, scores, weights=weights),
        "recentered_calibration_error": calibration_error(y_true, recenter(y_true, scores, weights), weights=weights),
        "mean_cost": (counts.false_positive * false_positive + counts.false_negative * false_negative) / total,
    }
    if called:
        measures["precision"] = counts.true_positive / called
    if positives:
        measures["recall"] = counts.true_positive / positives
        measures["average_precision"] = average_precision_score(y_true, scores, sample_weight=weights)
    if called or positives:
        measures["f1"] = 2 * counts.true_positive / (called + positives)
    if 0 < y_true.sum() < n_rows:
        measures["roc_auc"] = roc_auc_score(y_true, scores, sample_weight=weights)
    return {name: float(value) for name, value in measures.items()}


def count_confusion(
    labels: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> Confusion:
    """Counts of right and wrong answers when every score of at least `threshold` is called positive.

    scikit-learn's `confusion_matrix` takes 99 ms for a million rows, this 2 ms; and it rejects a table without rows.
    """
    y_true = _to_integers(labels).astype(bool)
    called = scores >= threshold

    def count(member: np.ndarray) -> float:
        return int(member.sum()) if weights is None else float(weights[member].sum())

    return Confusion(
        true_positive=count(y_true & called),
        false_positive=count(~y_true & called),
        false_negative=count(y_true & ~called),
        true_negative=count(~y_true & ~called),
    )


def recenter(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The scores with one constant added to their log odds, so that their mean is the share of positives.

    What calibration error is left is not due to another base rate (Saerens et al. 2002, "Adjusting the Outputs of a
    Classifier to New a Priori Probabilities").
    """
    share = np.average(_to_integers(labels), weights=weights)
    clipped = np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9)
    odds = np.log(clipped / (1 - clipped))
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = np.average(1 / (1 + np.exp(-(odds + middle))), weights=weights)
        low, high = (middle, high) if mean < share else (low, middle)
    shifted: np.ndarray = 1 / (1 + np.exp(-(odds + (low + high) / 2)))
    return shifted


def reliability(
    labels: np.ndarray, scores: np.ndarray, bins: int = CALIBRATION_BINS, weights: np.ndarray | None = None
) -> Reliability:
    """Group rows by score into at most `bins` bins of equal mass; equal scores share a bin, whatever the row order."""
    scores = scores.astype(np.float64)
    inner = np.quantile(scores, np.arange(1, bins) / bins, method="inverted_cdf")
    place = np.searchsorted(np.unique(inner), scores, side="left")
    counted = np.ones(len(scores)) if weights is None else weights
    rows = np.bincount(place, weights=counted)
    filled = rows > 0
    predicted = np.bincount(place, weights=scores * counted)[filled] / rows[filled]
    observed = np.bincount(place, weights=_to_integers(labels) * counted)[filled] / rows[filled]
    return Reliability(predicted, observed, rows[filled])


def calibration_error(
    labels: np.ndarray, scores: np.ndarray, bins: int = CALIBRATION_BINS, weights: np.ndarray | None = None
) -> float:
    """Expected calibration error: sum over bins of rows / n_rows · |share of positives − mean score|.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; bins of equal mass,
    which biases it least, after Roelofs et al. 2022, "Mitigating Bias in Calibration Error Estimation".
    """
    groups = reliability(labels, scores, bins, weights)
    return float((groups.rows * np.abs(groups.observed - groups.predicted)).sum() / groups.rows.sum())


def choose_threshold(
    labels: np.ndarray,
    scores: np.ndarray,
    false_positive: float,
    false_negative: float,
    weights: np.ndarray | None = None,
) -> float:
    """The threshold in [0, 1] with the lowest total cost on these rows.

    Candidates are the scores themselves (exact in whatever float they travel in) and 1.0, which calls nothing
    positive. Of several cheapest the one nearest to false_positive / (false_positive + false_negative) wins,
    which is the best one for calibrated probabilities (Elkan 2001, "The Foundations of Cost-Sensitive
    Learning"); of two equally near the lower. Costs that differ by less than 1e-9 of the lowest are equal: weights
    add up with rounding errors. Without rows, or with rows of one class alone, that value itself is the answer: they
    cannot tell what a miss, or a false alarm, would have cost.
    """
    calibrated = false_positive / (false_positive + false_negative)
    if len(np.unique(labels)) < 2:
        return calibrated
    _, alarms, misses, hits, found = confusion_matrix_at_thresholds(
        _to_integers(labels), scores, pos_label=1, sample_weight=weights
    )
    candidates = found.astype(np.float64)
    if candidates[0] < 1.0:
        candidates, alarms, misses = np.append(1.0, candidates), np.append(0.0, alarms), np.append(hits[-1], misses)
    costs = alarms * false_positive + misses * false_negative
    # They come in falling order, and of equals argmin takes the first.
    cheapest = candidates[costs <= costs.min() * (1 + 1e-9)][::-1]
    return float(cheapest[np.argmin(np.abs(cheapest - calibrated))])


def compute_curves(task: Task, y_true: np.ndarray, output: np.ndarray) -> dict[str, Points]:
    """Points for plots, at most 200 each; an undefined curve is empty. Arguments as of `compute_metrics`.

    Binary: ROC, precision and recall, and calibration. Multiclass: calibration of the predicted classes. Regression:
    observed against predicted values, and the distribution of errors.
    """
    if task == "binary":
        return compute_binary_curves(y_true, output[:, -1])
    if task == "multiclass":
        right = output.argmax(axis=1) == y_true
        groups = reliability(right, output.max(axis=1)) if len(y_true) else Reliability(*[np.empty(0)] * 3)
        return {
            "calibration": _thin_curve(predicted=groups.predicted, observed=groups.observed, rows=groups.rows),
        }
    order = np.argsort(output[:, 0], kind="stable")
    errors = np.sort(np.abs(output[:, 0].astype(np.float64) - y_true))
    share = (np.arange(len(errors)) + 1) / max(1, len(errors))
    return {
        "predicted": _pick_evenly(predicted=output[order, 0].astype(np.float64), observed=y_true[order]),
        "errors": _pick_evenly(error=errors, share=share),
    }


def compute_binary_curves(labels: np.ndarray, scores: np.ndarray) -> dict[str, Points]:
    """ROC, precision-recall and calibration points for plots, at most 200 each; an undefined curve is empty."""
    y_true, scores = _to_integers(labels), scores.astype(np.float64)
    found: dict[str, Points] = {"roc": [], "precision_recall": [], "calibration": []}
    if len(y_true) == 0:
        return found
    if 0 < y_true.sum() < len(y_true):
        false_rate, true_rate, _ = roc_curve(y_true, scores)
        found["roc"] = _thin_curve(false_positive_rate=false_rate, true_positive_rate=true_rate)
    if y_true.any():
        precision, recall, _ = precision_recall_curve(y_true, scores)
        found["precision_recall"] = _thin_curve(recall=recall[::-1], precision=precision[::-1])
    groups = reliability(y_true, scores)
    found["calibration"] = _thin_curve(predicted=groups.predicted, observed=groups.observed, rows=groups.rows)
    return found


def _to_integers(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int64)


def _pick_evenly(**axes: np.ndarray) -> Points:
    """Records of the axes, of at most 200 rows, evenly spaced."""
    n_rows = len(next(iter(axes.values())))
    kept = np.linspace(0, n_rows - 1, min(n_rows, MAX_POINTS)).astype(np.intp)
    return [{name: float(values[at]) for name, values in axes.items()} for at in kept]


def _thin_curve(**axes: np.ndarray) -> Points:
    """Records of the axes, thinned evenly along the curve's length so that its shape survives."""
    x, y = list(axes.values())[:2]
    kept = np.arange(len(x))
    if len(x) > MAX_POINTS:
        length = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
        kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS), side="left"))
    return [{name: float(values[at]) for name, values in axes.items()} for at in kept]
