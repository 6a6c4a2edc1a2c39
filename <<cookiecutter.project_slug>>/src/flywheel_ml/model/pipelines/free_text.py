"""Decides on the validation rows whether the words of free-text columns are used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline

from flywheel_ml.core.contract import Task
from flywheel_ml.model.pipelines import estimators, preprocessing
from flywheel_ml.model.pipelines.estimators import Rows

_MIN_STANDARD_ERRORS = 2
MAX_ROWS = 100_000
"""Maximum rows for this decision: one column per word needs gigabytes for a million rows."""


class TextSelection(NamedTuple):
    """Validation losses (log loss, or mean squared error) with and without the words, and whether they stay."""

    kept: bool
    with_text: float
    without_text: float

    def apply(self, pipeline: Pipeline) -> Pipeline:
        """Return the unfitted pipeline with or without words, as decided."""
        return pipeline if self.kept else preprocessing.drop_text(pipeline)


def select_text_features(build: Callable[[], Pipeline], train: Rows, validation: Rows, task: Task) -> TextSelection:
    """Decide whether to use the words of free-text columns.

    Words stay if they lower the loss by more than `_MIN_STANDARD_ERRORS` standard errors: noise wins half the time.

    Args:
        build: makes the unfitted pipeline with words.
        train: what both are fitted on, the pipeline with words and the one without.
        validation: what both are judged by.
        task: what the pipelines are for.
    """
    train_rows, validation_rows = (
        rows.take(estimators.pick_evenly_spaced(rows.labels, MAX_ROWS, task)) for rows in (train, validation)
    )
    fitted = (
        estimators.fit(pipeline, *train_rows, validation_rows)
        for pipeline in (build(), preprocessing.drop_text(build()))
    )
    with_text, without_text = (_compute_losses(pipeline, validation_rows) for pipeline in fitted)
    gain = without_text - with_text
    is_gain = gain.mean() > _MIN_STANDARD_ERRORS * gain.std() / np.sqrt(len(gain))
    return TextSelection(bool(is_gain), float(with_text.mean()), float(without_text.mean()))


def _compute_losses(pipeline: Any, rows: Rows) -> np.ndarray:
    """Of each row, float64 [n_rows]."""
    if not hasattr(pipeline, "predict_proba"):
        squares: np.ndarray = (pipeline.predict(rows.frame) - rows.labels) ** 2
        return squares
    likely = pipeline.predict_proba(rows.frame)[np.arange(len(rows.labels)), rows.labels.astype(np.intp)]
    losses: np.ndarray = -np.log(np.maximum(likely, np.finfo(np.float64).eps))
    return losses
