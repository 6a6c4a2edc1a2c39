"""The measures, used by evaluation, monitoring and experiments.

`judge` takes any task; its parts are for one. Every result is a plain float and finite; a measure that the rows
leave undefined (no positive row, no negative row, no row at all) is absent. Nothing here uses threads, so the bits
do not depend on their number.
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from .contract import Task

CALIBRATION_BINS = 15
MAX_POINTS = 200

Points = list[dict[str, float]]

HEADLINE: dict[Task, str] = {"binary": "roc_auc", "multiclass": "roc_auc", "regression": "r2"}
"""The measure that gates and tables go by; higher is better."""
LOSS: dict[Task, str] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}
"""The measure of distance to the truth; lower is better."""


class Confusion(NamedTuple):
    """Counts of right and wrong answers at one threshold."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


class Reliability(NamedTuple):
    """Calibration in bins of about equally many rows: mean score, share of positives and rows, each [n_bins]."""

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


class Decision(NamedTuple):
    """Where two classes part: the threshold, and the costs of a false alarm and of a miss."""

    threshold: float
    false_positive: float = 1.0
    false_negative: float = 1.0


def judge(task: Task, truth: np.ndarray, output: np.ndarray, decision: Decision | None = None) -> dict[str, float]:
    """All measures of a model's output, whatever the task.

    Args:
        truth: float [n_rows], the place of the true class or the true value; see `Contract.truth`.
        output: float [n_rows, n_classes] of probabilities, or [n_rows, 3]: value, low and high end of its interval.
        decision: for two classes.
    """
    if task == "regression":
        return regression(truth, output)
    if task == "multiclass":
        return multiclass(truth.astype(np.intp), output)
    assert decision is not None
    return binary(truth, output[:, -1], *decision)


def loss(task: Task, truth: np.ndarray, answers: np.ndarray) -> float:
    """The measure of `LOSS` alone, of answers that need no decision and no interval.

    Args:
        truth: float [n_rows], as of `judge`.
        answers: float [n_rows, n_classes] of probabilities, or [n_rows, 1] of values.
    """
    if task == "regression":
        return float(np.sqrt(((answers[:, 0].astype(np.float64) - truth) ** 2).mean()))
    likely = answers[np.arange(len(truth)), truth.astype(np.intp)].astype(np.float64)
    return float(-np.log(np.clip(likely, np.finfo(np.float64).eps, None)).mean())


def scores(task: Task, output: np.ndarray) -> np.ndarray:
    """One number for each row of an output, float [n_rows]: what is profiled and sorted by.

    The probability of the positive class of two, of the likeliest of more, or the value itself.
    """
    if task == "regression":
        return output[:, 0]
    found: np.ndarray = output[:, -1] if task == "binary" else output.max(axis=1)
    return found


def regression(truth: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """mae, rmse, bias (mean of value − truth), coverage and width of the intervals; r2 where the truth varies.

    Args:
        truth: float [n_rows].
        output: float [n_rows, 3]: value, low and high end of its interval.
    """
    if len(truth) == 0:
        return {}
    value, low, high = output.astype(np.float64).T
    error = value - truth
    measures = {
        "mae": np.abs(error).mean(),
        "rmse": np.sqrt((error**2).mean()),
        "bias": error.mean(),
        "coverage": ((low <= truth) & (truth <= high)).mean(),
        "interval_width": (high - low).mean(),
    }
    spread = ((truth - truth.mean()) ** 2).mean()
    if spread > 0:
        measures["r2"] = 1 - (error**2).mean() / spread
    return {name: float(found) for name, found in measures.items()}


def multiclass(truth: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """accuracy, log_loss, macro_f1, lowest_recall and calibration_error of the answers; roc_auc where it is defined.

    ROC AUC is each class against the rest, averaged over the classes that occur beside others (Fawcett 2006, "An
    introduction to ROC analysis"); macro F1 averages over the classes that occur, and the lowest
    recall is that of the one among them which is found least.

    Args:
        truth: int [n_rows], the place of the true class.
        output: float [n_rows, n_classes] of probabilities.
    """
    if len(truth) == 0:
        return {}
    output = output.astype(np.float64)
    output = output / output.sum(axis=1, keepdims=True)  # float32 sums to 1 only nearly.
    answer = output.argmax(axis=1)
    present = np.unique(truth)
    right = answer == truth
    measures = {
        "accuracy": right.mean(),
        "log_loss": log_loss(truth, output, labels=np.arange(output.shape[1])),
        "macro_f1": f1_score(truth, answer, labels=present, average="macro", zero_division=0.0),
        "lowest_recall": min(right[truth == place].mean() for place in present),
        "calibration_error": calibration_error(right, output.max(axis=1)),
    }
    if len(present) > 1:
        measures["roc_auc"] = np.mean([roc_auc_score(truth == place, output[:, place]) for place in present])
    return {name: float(found) for name, found in measures.items()}


def conformal(truth: np.ndarray, values: np.ndarray, level: float) -> float:
    """Half the width of an interval around a value that holds the truth in a share `level` of new rows.

    Split conformal prediction on rows that the model has not seen: the ⌈(n + 1) · level⌉-th smallest absolute error,
    after Lei et al. 2018, "Distribution-Free Predictive Inference for Regression". The largest, where there are too
    few rows for the level.
    """
    errors = np.sort(np.abs(values.astype(np.float64) - truth))
    place = min(int(np.ceil((len(errors) + 1) * level)), len(errors)) - 1
    return float(errors[place])


def binary(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    false_positive: float = 1.0,
    false_negative: float = 1.0,
) -> dict[str, float]:
    """All measures of a binary classifier.

    Args:
        labels: bool or 0/1 [n_rows].
        scores: float [n_rows]; a row counts as positive where its score is at least `threshold`.
        threshold: the decision threshold.
        false_positive: cost of a false alarm.
        false_negative: cost of a miss.

    Returns:
        prevalence, accuracy, brier, log_loss, calibration_error and mean_cost (cost per row) of any rows;
        recall and average_precision where there is a positive row, roc_auc where there are both kinds,
        precision and f1 where they are defined.
    """
    n_rows = len(labels)
    if n_rows == 0:
        return {}
    counts = confusion(labels, scores, threshold)
    truth, scores = _as_truth(labels), scores.astype(np.float64)
    positives = counts.true_positive + counts.false_negative
    called = counts.true_positive + counts.false_positive
    measures = {
        "prevalence": positives / n_rows,
        "accuracy": (counts.true_positive + counts.true_negative) / n_rows,
        "brier": brier_score_loss(truth, scores, labels=[0, 1], pos_label=1),
        "log_loss": log_loss(truth, scores, labels=[0, 1]),
        "calibration_error": calibration_error(truth, scores),
        "mean_cost": (counts.false_positive * false_positive + counts.false_negative * false_negative) / n_rows,
    }
    if called:
        measures["precision"] = counts.true_positive / called
    if positives:
        measures["recall"] = counts.true_positive / positives
        measures["average_precision"] = average_precision_score(truth, scores)
    if called or positives:
        measures["f1"] = 2 * counts.true_positive / (called + positives)
    if 0 < positives < n_rows:
        measures["roc_auc"] = roc_auc_score(truth, scores)
    return {name: float(value) for name, value in measures.items()}


def confusion(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Confusion:
    """Counts of right and wrong answers when every score of at least `threshold` is called positive."""
    truth = _as_truth(labels).astype(bool)
    called = scores >= threshold
    hits = int((truth & called).sum())
    return Confusion(
        true_positive=hits,
        false_positive=int(called.sum()) - hits,
        false_negative=int(truth.sum()) - hits,
        true_negative=int((~truth & ~called).sum()),
    )


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = CALIBRATION_BINS) -> Reliability:
    """Group rows by score into at most `bins` bins of equal mass; equal scores share a bin, so row order has no say."""
    scores = scores.astype(np.float64)
    inner = np.quantile(scores, np.arange(1, bins) / bins, method="inverted_cdf")
    place = np.searchsorted(np.unique(inner), scores, side="left")
    rows = np.bincount(place)
    filled = rows > 0
    predicted = np.bincount(place, weights=scores)[filled] / rows[filled]
    observed = np.bincount(place, weights=_as_truth(labels))[filled] / rows[filled]
    return Reliability(predicted, observed, rows[filled])


def calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: sum over bins of rows / n_rows · |share of positives − mean score|.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; bins of equal mass,
    which biases it least, after Roelofs et al. 2022, "Mitigating Bias in Calibration Error Estimation".
    """
    groups = reliability(labels, scores, bins)
    return float((groups.rows * np.abs(groups.observed - groups.predicted)).sum() / len(labels))


def choose_threshold(labels: np.ndarray, scores: np.ndarray, false_positive: float, false_negative: float) -> float:
    """The threshold in [0, 1] with the lowest total cost on these rows.

    Candidates are the scores themselves (exact in whatever float they travel in) and 1.0, which calls nothing
    positive. Of several cheapest the one nearest to false_positive / (false_positive + false_negative) wins,
    which is the best one for calibrated probabilities (Elkan 2001, "The Foundations of Cost-Sensitive
    Learning"); of two equally near the lower. Without rows, or with rows of one class alone, that value itself is
    the answer: they cannot tell what a miss, or a false alarm, would have cost.
    """
    calibrated = false_positive / (false_positive + false_negative)
    if len(np.unique(labels)) < 2:
        return calibrated
    order = np.argsort(scores, kind="stable")
    candidates, first = np.unique(scores[order].astype(np.float64), return_index=True)
    below = np.concatenate(([0], np.cumsum(_as_truth(labels)[order])))
    if candidates[-1] < 1.0:
        candidates, first = np.append(candidates, 1.0), np.append(first, len(labels))
    misses = below[first]
    alarms = (len(labels) - first) - (below[-1] - misses)
    costs = alarms * false_positive + misses * false_negative
    cheapest = candidates[costs == costs.min()]
    return float(cheapest[np.argmin(np.abs(cheapest - calibrated))])


def curves(task: Task, truth: np.ndarray, output: np.ndarray) -> dict[str, Points]:
    """Points for plots, at most 200 each; an undefined curve is empty. Arguments as of `judge`.

    Of two classes ROC, precision and recall, and calibration; of more the calibration of the answers given; of
    numbers the values found beside the values predicted, and how large the errors are.
    """
    if task == "binary":
        return binary_curves(truth, output[:, -1])
    if task == "multiclass":
        right = output.argmax(axis=1) == truth
        groups = reliability(right, output.max(axis=1)) if len(truth) else Reliability(*[np.empty(0)] * 3)
        return {
            "calibration": _points(predicted=groups.predicted, observed=groups.observed, rows=groups.rows),
        }
    order = np.argsort(output[:, 0], kind="stable")
    errors = np.sort(np.abs(output[:, 0].astype(np.float64) - truth))
    share = (np.arange(len(errors)) + 1) / max(1, len(errors))
    return {
        "predicted": _spread(predicted=output[order, 0].astype(np.float64), observed=truth[order]),
        "errors": _spread(error=errors, share=share),
    }


def binary_curves(labels: np.ndarray, scores: np.ndarray) -> dict[str, Points]:
    """ROC, precision-recall and calibration points for plots, at most 200 each; an undefined curve is empty."""
    truth, scores = _as_truth(labels), scores.astype(np.float64)
    found: dict[str, Points] = {"roc": [], "precision_recall": [], "calibration": []}
    if len(truth) == 0:
        return found
    if 0 < truth.sum() < len(truth):
        false_rate, true_rate, _ = roc_curve(truth, scores)
        found["roc"] = _points(false_positive_rate=false_rate, true_positive_rate=true_rate)
    if truth.any():
        precision, recall, _ = precision_recall_curve(truth, scores)
        found["precision_recall"] = _points(recall=recall[::-1], precision=precision[::-1])
    groups = reliability(truth, scores)
    found["calibration"] = _points(predicted=groups.predicted, observed=groups.observed, rows=groups.rows)
    return found


def _as_truth(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int64)


def _spread(**axes: np.ndarray) -> Points:
    """Records of the axes, of at most 200 rows, evenly spaced."""
    n_rows = len(next(iter(axes.values())))
    kept = np.linspace(0, n_rows - 1, min(n_rows, MAX_POINTS)).astype(np.intp)
    return [{name: float(values[at]) for name, values in axes.items()} for at in kept]


def _points(**axes: np.ndarray) -> Points:
    """Records of the axes, thinned evenly along the curve's length so that its shape survives."""
    x, y = list(axes.values())[:2]
    kept = np.arange(len(x))
    if len(x) > MAX_POINTS:
        length = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
        kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS), side="left"))
    return [{name: float(values[at]) for name, values in axes.items()} for at in kept]
