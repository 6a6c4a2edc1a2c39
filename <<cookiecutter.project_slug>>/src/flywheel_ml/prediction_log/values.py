"""Converts logged labels and answers, which are JSON texts, to numbers."""

import json
import math
from collections.abc import Sequence

import numpy as np

from flywheel_ml.core.contract import Contract
from flywheel_ml.prediction_log.rows import Prediction


def parse_label(text: str | None, contract: Contract) -> float:
    """Convert a label as `Contract.encode_target` does; NaN if it is absent or not a value of the target."""
    if text is None:
        return math.nan
    value = json.loads(text)
    if contract.classes:
        return float(contract.classes.index(value)) if value in contract.classes else math.nan
    return float(value) if isinstance(value, int | float) else math.nan


def parse_output(prediction: Prediction, contract: Contract) -> Sequence[float] | None:
    """Return the output [k] of a logged prediction, as in `metrics.compute_metrics`; None if it is of another task."""
    if contract.task == "binary":
        score = np.float32(prediction.score)
        return float(1 - score), float(score)
    answer = json.loads(prediction.output)
    if not contract.classes:
        return [answer["prediction"], *answer["interval"]] if "interval" in answer else None
    found = answer.get("probabilities")
    # Another model may have had other classes, or the same ones in another order.
    return None if found is None else [found.get(str(name), 0.0) for name in contract.classes]
