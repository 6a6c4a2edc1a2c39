"""Losses of logged predictions, one number for each labelled row."""

import json
import math

from flywheel_ml.core.canary_params import CanaryParams
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.experiments.evidence import Loss
from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.prediction_log import Prediction
from flywheel_ml.prediction_log.values import parse_label, parse_output
from flywheel_ml.utils.errors import ConfigError

MIN_PROBABILITY = 1e-3
"""Of the true class in a log loss, which is therefore 6.9 at most: its variance must be finite."""


def choose_loss(task: Task, params: CanaryParams) -> Loss:
    """Return the loss of params.yaml for a task.

    Raises:
        ConfigError: the task does not have it.
    """
    is_number = task == "regression"
    if params.loss == "auto":
        return "squared" if is_number else "log"
    if is_number != (params.loss == "squared"):
        fitting = "squared" if is_number else "log or zero_one"
        raise ConfigError(
            f"params.yaml: canary.loss is {params.loss}, and the target is for {fitting}; change it, or write auto"
        )
    return params.loss


def compute_loss(loss: Loss, prediction: Prediction, label: str, contract: Contract) -> float | None:
    """Return the loss of a logged prediction; None if its label or its answer is of another task, or not finite.

    Args:
        loss: which one.
        prediction: from the log.
        label: a JSON text.
        contract: of the model, for its classes.
    """
    truth = parse_label(label, contract)
    if math.isnan(truth):
        return None
    if loss == "zero_one":
        answer = json.loads(prediction.output).get("prediction")
        return None if answer is None else float(answer != json.loads(label))
    output = parse_output(prediction, contract)
    if output is None:
        return None
    found = (output[0] - truth) ** 2 if loss == "squared" else -math.log(max(output[int(truth)], MIN_PROBABILITY))
    return found if math.isfinite(found) else None


class LossAccumulator:
    """Adds up losses. If entities have several rows, each counts once, with the mean of its rows.

    Args:
        by_entity: whether entities have several rows. Then memory grows with their number: 200 MB for a million.
    """

    def __init__(self, by_entity: bool) -> None:
        self._by_entity = by_entity
        self._rows, self._total, self._squares = 0, 0.0, 0.0
        self._entities: dict[str, tuple[int, float]] = {}

    def add(self, entity: str | None, value: float) -> None:
        """Add the loss of a row of an entity."""
        if self._by_entity and entity is not None:
            count, total = self._entities.get(entity, (0, 0.0))
            self._entities[entity] = count + 1, total + value
            return
        self._count(value)

    def sum_up(self) -> LossSums:
        """Return the sums of everything that was added; call it once."""
        for count, total in self._entities.values():
            self._count(total / count)
        self._entities.clear()
        return LossSums(self._rows, self._total, self._squares)

    def _count(self, value: float) -> None:
        self._rows += 1
        self._total += value
        self._squares += value * value
