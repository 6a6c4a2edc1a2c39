"""Chooses and fits the calibration of probabilities on out-of-fold rows."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from flywheel_ml.core.calibration import METHODS, MIN_PROBABILITY, Calibration, Curve, Method, logit
from flywheel_ml.model.training import selection
from flywheel_ml.model.training.selection import OutOfFold

FOLDS = 5
MIN_ROWS, MIN_CLASS_ROWS = 100, 20
"""Minimum rows, and minimum rows per class, for calibration."""
MAX_KNOTS = 200
MAX_SLOPE = 50.0
"""Of an isotonic curve: the float32 probabilities of ONNX differ from scikit-learn's by 1e-7, and what is made of them
must not differ by more than 1e-5."""


class CalibrationResult(NamedTuple):
    """The calibrator, mean log loss of each method on rows that it was not fitted on, and out-of-fold rows so treated.

    `losses` is empty where there were too few rows to compare.
    """

    calibration: Calibration
    losses: dict[str, float]
    out_of_fold: OutOfFold

    def report(self) -> dict[str, Any]:
        """For reports: the calibrator, and the losses that chose it."""
        return {**self.calibration.model_dump(mode="json"), "losses": self.losses}


def choose(rows: OutOfFold, requested_method: str = "auto", in_time: bool = False) -> CalibrationResult:
    """Choose the simplest method within one standard error of the best, as `selection.choose` does.

    Args:
        rows: out-of-fold probabilities of a classifier.
        requested_method: the only method that is considered, or "auto".
        in_time: whether the rows are in order of time: a method is then fitted on what came before. The first of
            `FOLDS` parts is answered without, and says nothing of the methods.
    """
    truth = rows.truth.astype(np.intp)
    rarest = np.bincount(truth, minlength=rows.answers.shape[1]).min()
    methods: tuple[Any, ...] = METHODS if requested_method == "auto" else (requested_method,)
    if len(truth) < MIN_ROWS or rarest < MIN_CLASS_ROWS or methods == ("none",):
        return CalibrationResult(Calibration(method="none"), {}, rows)
    fold = np.arange(len(truth)) * FOLDS // len(truth) if in_time else rows.clusters % FOLDS
    answers = {method: _cross_fit(method, rows, truth, fold, in_time) for method in methods}
    judged = rows.take(fold > 0) if in_time else rows
    losses = {
        method: selection.compute_row_losses("binary", judged.truth, found[fold > 0] if in_time else found)
        for method, found in answers.items()
    }
    winner, all_figures = selection.choose(losses, judged.weights, judged.clusters)
    return CalibrationResult(
        fit(winner, rows.answers, truth, rows.weights),
        {method: figures[0] for method, figures in zip(methods, all_figures, strict=True)},
        rows._replace(answers=answers[winner]),
    )


def fit(method: Method, probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> Calibration:
    """Fit one method on probabilities [n_rows, n_classes] and the places of the true classes, int [n_rows]."""
    if method == "none":
        return Calibration(method=method)
    if method == "temperature":
        return _fit_temperature(probabilities, truth, weights)
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    if method == "isotonic":
        curves = [_fit_isotonic(probabilities[:, at], truth == at, weights) for at in classes]
        return Calibration(method=method, curves=tuple(curves))
    lines = [_fit_sigmoid(probabilities[:, at], truth == at, weights) for at in classes]
    return Calibration(
        method=method, slopes=tuple(slope for slope, _ in lines), intercepts=tuple(start for _, start in lines)
    )


def _cross_fit(method: Method, rows: OutOfFold, truth: np.ndarray, fold: np.ndarray, in_time: bool) -> np.ndarray:
    found = rows.answers.astype(np.float64).copy()
    if method == "none":
        return found
    n_classes = found.shape[1]
    for at in np.unique(fold):
        others = fold < at if in_time else fold != at
        if len(np.unique(truth[others])) == n_classes:
            fitted = fit(method, rows.answers[others], truth[others], rows.weights[others])
            found[fold == at] = fitted.apply(rows.answers[fold == at])
    return found


def _fit_temperature(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> Calibration:
    n_classes = probabilities.shape[1]
    intercepts = (0.0,) if n_classes == 2 else ()
    targets = _smooth_targets(truth, n_classes)

    def made(log_slope: float) -> Calibration:
        return Calibration(method="temperature", slopes=(float(np.exp(log_slope)),), intercepts=intercepts)

    def loss(log_slope: float) -> float:
        answers = np.clip(made(log_slope).apply(probabilities), np.finfo(np.float64).tiny, None)
        return float(np.average(-(targets * np.log(answers)).sum(axis=1), weights=weights))

    return made(float(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def _smooth_targets(truth: np.ndarray, n_classes: int) -> np.ndarray:
    """Targets [n_rows, n_classes] that are never certain: of n rows of a class, one more of each is imagined.

    Source: Platt 1999, section 2.2. Without it, rows that a model separates call for certainty, and one wrong answer
    on a new row costs more than all the others gain.
    """
    others = 1 / (np.bincount(truth, minlength=n_classes) + n_classes)
    targets = np.repeat(others[truth][:, None], n_classes, axis=1)
    targets[np.arange(len(truth)), truth] = 1 - (n_classes - 1) * others[truth]
    return targets


def _fit_sigmoid(probability: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    fitted = LogisticRegression(C=1e3, solver="newton-cholesky")
    target = _smooth_targets(positive.astype(np.intp), 2)
    # A row counts for both classes, by its target.
    fitted.fit(
        np.tile(logit(probability), 2)[:, None],
        np.repeat([False, True], len(positive)),
        sample_weight=np.concatenate([weights * target[:, 0], weights * target[:, 1]]),
    )
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope > 0:
        return slope, intercept
    # A negative slope would reverse the order of the scores; it is noise.
    share = float(np.clip(np.average(positive, weights=weights), MIN_PROBABILITY, 1 - MIN_PROBABILITY))
    return 0.0, float(np.log(share / (1 - share)))


def _fit_isotonic(probability: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> Curve:
    # Never predict certainty: one wrong prediction would cost more than all others gain.
    least = 1 / (len(positive) + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fitted.fit(probability.astype(np.float64), positive.astype(np.float64), sample_weight=weights)
    x, y = fitted.X_thresholds_, fitted.y_thresholds_
    indices = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_KNOTS)).astype(np.intp))
    x, y = x[indices], y[indices].copy()
    for at in range(1, len(x)):
        y[at] = min(y[at], y[at - 1] + MAX_SLOPE * (x[at] - x[at - 1]))
    return Curve(x=tuple(x.tolist()), y=tuple(y.tolist()))
