"""Formats predictions as the JSON objects in responses and in the log."""

from collections.abc import Sequence

import numpy as np
from pydantic_core import to_json

from flywheel_ml.core.bundle import Predictions
from flywheel_ml.core.contract import Label


class OutputTexts:
    """Formats one model's predictions.

    Args:
        classes: of the target, in the order of the probabilities; empty for a numeric target.
    """

    def __init__(self, classes: Sequence[Label]) -> None:
        self.class_names = [format_class(label) for label in classes]
        self._names = dict(zip(classes, self.class_names, strict=True))
        self._labels = {label: to_json(label).decode() for label in classes}
        keys = (to_json(name).decode().replace("%", "%%") for name in self.class_names)
        self._probabilities = f'"probabilities":{{{",".join(f"{key}:%s" for key in keys)}}}'

    def write(self, predictions: Predictions) -> list[str]:
        """Return each prediction as a JSON object."""
        width, numbers = predictions.output.shape[1], format_numbers(predictions.output.ravel())
        each = [numbers[at : at + width] for at in range(0, len(numbers), width)]
        if not self.class_names:
            return [f'{{"prediction":{value},"interval":[{low},{high}]}}' for value, low, high in each]
        labels, probabilities = self._labels, self._probabilities
        values = predictions.values.tolist()
        return [
            f'{{"prediction":{labels[value]},{probabilities % tuple(own)}}}'
            for value, own in zip(values, each, strict=True)
        ]

    def name_classes(self, predictions: Predictions) -> list[str]:
        """Return the predicted class of each row as metrics name it; all numbers count as one class."""
        values = predictions.values.tolist()
        return [self._names[value] for value in values] if self.class_names else ["value"] * len(values)


def format_class(label: Label) -> str:
    """Return a class as JSON text, for keys and metrics."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def format_numbers(values: np.ndarray) -> list[str]:
    """Return finite numbers [n] as JSON texts; formatting them one by one in Python takes four times as long."""
    return to_json(values.tolist()).decode()[1:-1].split(",") if len(values) else []
