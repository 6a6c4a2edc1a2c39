"""Whether the words of free texts are worth having, decided on the validation rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline

from flywheel_ml.core.contract import Task
from flywheel_ml.model.pipelines import estimators, preprocessing
from flywheel_ml.model.pipelines.estimators import Rows

_ERRORS = 2
ROWS = 100_000
"""Rows that the words are judged by: a column for each word makes gigabytes of a million."""


class Judged(NamedTuple):
    """Validation losses (log loss, or mean squared error) with and without the words, and whether they stay."""

    kept: bool
    with_text: float
    without_text: float

    def arrange(self, pipeline: Pipeline) -> Pipeline:
        """An unfitted pipeline with or without words, as was decided."""
        return pipeline if self.kept else preprocessing.without_text(pipeline)


def judge(build: Callable[[], Pipeline], train: Rows, validation: Rows, task: Task) -> Judged:
    """Whether words are worth having.

    Words stay if they lower the loss by more than `_ERRORS` standard errors: noise wins half the time.

    Args:
        build: makes the unfitted pipeline with words.
        train: what both are fitted on, the pipeline with words and the one without.
        validation: what both are judged by.
        task: what the pipelines are for.
    """
    some, few = (rows.only(estimators.spread(rows.labels, ROWS, task)) for rows in (train, validation))
    fitted = (estimators.fit(pipeline, *some, few) for pipeline in (build(), preprocessing.without_text(build())))
    with_text, without_text = (_losses(pipeline, few) for pipeline in fitted)
    gain = without_text - with_text
    sure = gain.mean() > _ERRORS * gain.std() / np.sqrt(len(gain))
    return Judged(bool(sure), float(with_text.mean()), float(without_text.mean()))


def _losses(pipeline: Any, rows: Rows) -> np.ndarray:
    """Of each row, float64 [n_rows]."""
    if not hasattr(pipeline, "predict_proba"):
        squares: np.ndarray = (pipeline.predict(rows.frame) - rows.labels) ** 2
        return squares
    likely = pipeline.predict_proba(rows.frame)[np.arange(len(rows.labels)), rows.labels.astype(np.intp)]
    losses: np.ndarray = -np.log(np.maximum(likely, np.finfo(np.float64).eps))
    return losses
