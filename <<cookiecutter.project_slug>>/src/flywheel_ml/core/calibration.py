"""Calibrates a classifier's probabilities, in NumPy and row by row."""

from typing import Literal

import numpy as np

from flywheel_ml.utils import config_model

Method = Literal["none", "temperature", "sigmoid", "isotonic"]
METHODS: tuple[Method, ...] = ("none", "temperature", "sigmoid", "isotonic")
"""The simplest first."""
MIN_PROBABILITY = 1e-6
"""Probabilities are clipped to [SMALLEST, 1 − SMALLEST] before their logit is taken."""


class Curve(config_model.StrictModel):
    """Maps one class's probability `x` to `y`: linear between knots, constant beyond them."""

    x: tuple[float, ...]
    y: tuple[float, ...]


class Calibration(config_model.StrictModel):
    """A fitted calibrator.

    `temperature` and `sigmoid` map the logit z of each class to slope · z + intercept (of two classes the positive one
    only; the temperature of more divides log probabilities); `isotonic` has a curve for each class, or for the
    positive one of two. Sources: Platt 1999, "Probabilistic Outputs for Support Vector Machines"; Zadrozny & Elkan
    2002, "Transforming classifier scores into accurate multiclass probability estimates"; Guo et al. 2017, "On
    Calibration of Modern Neural Networks".
    """

    method: Method
    slopes: tuple[float, ...] = ()
    intercepts: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = ()

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64 [n_rows, n_classes], that sum to 1 in each row."""
        found = probabilities.astype(np.float64)
        if self.method == "none":
            return found
        if found.shape[1] == 2:
            positive = self._calibrate_class(found[:, 1], 0, found[:, 0])
            return np.stack((1 - positive, positive), axis=1)
        if self.method == "temperature":
            return _normalize(np.clip(found, MIN_PROBABILITY, None) ** self.slopes[0])
        calibrated = [self._calibrate_class(found[:, at], at, _sum_others(found, at)) for at in range(found.shape[1])]
        return _normalize(np.stack(calibrated, axis=1))

    def _calibrate_class(self, probability: np.ndarray, at: int, other: np.ndarray) -> np.ndarray:
        if self.method == "isotonic":
            curve = self.curves[at]
            found: np.ndarray = np.interp(probability, curve.x, curve.y)
            return found
        return sigmoid(self.slopes[at] * logit(probability, other) + self.intercepts[at])


def logit(probability: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Log odds of clipped probabilities.

    Args:
        probability: float [n_rows].
        other: 1 − probability as the model computed it; the difference to 1 has few digits in float32.
    """
    odds: np.ndarray = np.log(_clip(probability)) - np.log(_clip(1 - probability if other is None else other))
    return odds


def _clip(probability: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(probability, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return clipped


def sigmoid(odds: np.ndarray) -> np.ndarray:
    """Convert log odds to probabilities."""
    found: np.ndarray = 1 / (1 + np.exp(-odds))
    return found


def _sum_others(probabilities: np.ndarray, at: int) -> np.ndarray:
    """Sum of the probabilities of all other classes, [n_rows]."""
    total = np.zeros(len(probabilities))
    for other in range(probabilities.shape[1]):
        if other != at:
            total += probabilities[:, other]
    return total


def _normalize(values: np.ndarray) -> np.ndarray:
    """Each row [n_classes] divided by its sum."""
    # Column by column: NumPy's own sum over a row goes in another order for few rows.
    total = values[:, 0].copy()
    for at in range(1, values.shape[1]):
        total += values[:, at]
    found: np.ndarray = values / total[:, None]
    return found
