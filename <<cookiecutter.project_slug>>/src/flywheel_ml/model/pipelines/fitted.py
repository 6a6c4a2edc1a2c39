"""A fitted pipeline with what stands around it: the centre of a number, the calibration of probabilities."""

from typing import Any

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from flywheel_ml.core.calibration import Calibration


class FittedModel:
    """What the train stage hands to evaluation and packaging.

    Attributes:
        pipeline: of a number, fitted on its distance from `center`: float32 graphs resolve a spread of 500 around
            0 a hundred times better than around 100,000.
        center: what is added to the pipeline's answer, in float64.
        calibration: what becomes of the pipeline's probabilities.
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
