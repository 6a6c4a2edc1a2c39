"""Scikit-learn's multi-layer perceptrons, bounded in steps, and for numbers of any size."""

import math
from typing import Any, Self

import numpy as np
from scipy.special import expit
from sklearn.neural_network import MLPClassifier, MLPRegressor
from threadpoolctl import threadpool_limits


class Classifier(MLPClassifier):  # type: ignore[misc]
    """Trains on a fixed number of batches (`max_steps`), independent of the number of rows."""

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (64, 32),
        alpha: float = 0.001,
        learning_rate_init: float = 0.003,
        batch_size: int = 256,
        max_steps: int = 5000,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            alpha=alpha,
            learning_rate_init=learning_rate_init,
            batch_size=batch_size,
            random_state=random_state,
        )
        self.max_steps = max_steps

    def fit(self, x: np.ndarray, y: np.ndarray) -> Self:
        """Fit on float32 [n_rows, n_columns] and labels [n_rows]."""
        _limit_steps(self, len(x))
        # One thread: how a matrix product is cut up moves the last bits.
        with threadpool_limits(1, user_api="blas"):
            super().fit(x, y)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Probabilities, float [n_rows, n_classes]; of two classes each from the log odds.

        Scikit-learn subtracts the one from 1, and a calibrator of sure answers then divides by rounding errors.
        """
        if self.n_outputs_ > 1:
            found: np.ndarray = super().predict_proba(x)
            return found
        values = x
        for weights, offsets in zip(self.coefs_[:-1], self.intercepts_[:-1], strict=True):
            values = np.maximum(values @ weights + offsets, 0)
        odds = (values @ self.coefs_[-1] + self.intercepts_[-1])[:, 0].astype(np.float64)
        return np.stack((expit(-odds), expit(odds)), axis=1)


class Regressor(MLPRegressor):  # type: ignore[misc]
    """Regression version of `Classifier`; standardizes the target for training and predicts in its original unit."""

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (64, 32),
        alpha: float = 0.001,
        learning_rate_init: float = 0.003,
        batch_size: int = 256,
        max_steps: int = 5000,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            alpha=alpha,
            learning_rate_init=learning_rate_init,
            batch_size=batch_size,
            random_state=random_state,
        )
        self.max_steps = max_steps

    def fit(self, x: np.ndarray, y: np.ndarray) -> Self:
        """Fit on float32 [n_rows, n_columns] and values [n_rows]."""
        _limit_steps(self, len(x))
        mean, deviation = float(y.mean()), float(y.std()) or 1.0
        with threadpool_limits(1, user_api="blas"):
            super().fit(x, (y - mean) / deviation)
        # The last layer is linear, so its weights can include the scale of the target.
        self.coefs_[-1] = (self.coefs_[-1] * deviation).astype(self.coefs_[-1].dtype)
        self.intercepts_[-1] = (self.intercepts_[-1] * deviation + mean).astype(self.intercepts_[-1].dtype)
        return self


def restore_sklearn_class(estimator: Any) -> Any:
    """Set the estimator to scikit-learn's own class, which skl2onnx supports; leave others unchanged."""
    for known in (MLPClassifier, MLPRegressor):
        if isinstance(estimator, known):
            estimator.__class__ = known
    return estimator


def _limit_steps(network: Any, n_rows: int) -> None:
    """Set epochs and batch size; a batch is not larger than the table."""
    network.batch_size = min(network.batch_size, n_rows)
    network.max_iter = max(1, round(network.max_steps / math.ceil(n_rows / network.batch_size)))
