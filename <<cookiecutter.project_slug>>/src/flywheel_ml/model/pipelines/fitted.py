"""A fitted pipeline with its target centre (regression) or probability calibration (classification)."""

from typing import Any

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from flywheel_ml.core.calibration import Calibration


class FittedModel:
    """The model that the train stage passes to evaluation and packaging.

    Attributes:
        pipeline: of a number, fitted on its distance from `center`: float32 graphs resolve a spread of 500 around
            0 a hundred times better than around 100,000.
        center: what is added to the pipeline's answer, in float64.
        calibration: how the pipeline's probabilities are calibrated.
    """

    def __init__(self, pipeline: Pipeline, center: float = 0.0, calibration: Calibration | None = None) -> None:
        self.pipeline = pipeline
        self.center = center
        self.calibration = calibration or Calibration(method="none")

    def __getitem__(self, at: int) -> Any:
        return self.pipeline[at]

    @property
    def classes_(self) -> np.ndarray:
        """The classes that the fitted rows had."""
        found: np.ndarray = self.pipeline.classes_
        return found

    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        """Values, float64 [n_rows]."""
        values: np.ndarray = self.pipeline.predict(frame) + self.center
        return values

    def predict_proba(self, frame: pl.DataFrame) -> np.ndarray:
        """Calibrated probabilities, float64 [n_rows, n_classes]."""
        return self.calibration.apply(self.pipeline.predict_proba(frame))
