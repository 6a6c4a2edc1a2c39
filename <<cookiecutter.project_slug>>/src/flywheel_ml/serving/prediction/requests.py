"""Prediction requests, their results, and the interface of codecs."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flywheel_ml.prediction_log import Row
from flywheel_ml.serving.experiments.assignment import NO_HINTS, RoutingHints
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.observability.tracing import NO_CONTEXT, RequestContext

Instance = Mapping[str, Any]


class Results(NamedTuple):
    """The predictions of a request, in the order of its rows.

    Attributes:
        ids: of the predictions.
        outputs: JSON objects, as `OutputTexts` formats them.
        models: the model of each row; empty if the request's own model predicted all rows.
    """

    ids: Sequence[str]
    outputs: Sequence[str]
    models: Sequence[ServedModel] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether models of different variants or versions predicted the rows."""
        return len({(model.variant, model.ref.version) for model in self.models}) > 1

    def list_models(self, model: ServedModel) -> Sequence[ServedModel]:
        """Return the model of each row; `model` is the request's own."""
        return self.models or [model] * len(self.ids)

    def is_degraded(self, model: ServedModel) -> bool:
        """Whether a fallback predicted at least one row; `model` is the request's own."""
        return any(one.degraded for one in self.models) if self.models else model.degraded


class Codec(Protocol):
    """Decodes the requests of one protocol and encodes its responses.

    A codec that keeps state of a request is created for each request.
    """

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        """Return the instances of a body, validated by the contract.

        Raises:
            Problem: 400, 415 or 422.
        """
        ...

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """Return the body of the response; it is sent once the predictions are committed."""
        ...


class RowPrediction(NamedTuple):
    """One row's prediction: a JSON object, the class as metrics name it, and the score."""

    output: str
    class_name: str
    score: float


class PredictRequest(NamedTuple):
    """A request for predictions.

    Attributes:
        body: as it was received.
        codec: of its protocol.
        received_at: `time.perf_counter`.
        hints: headers that influence which model answers.
        context: identifies the request in log lines.
        instances: its rows, once decoded.
        ids: of the predictions, once rows are assigned to models.
        predictions_by_position: rows that another model has answered: position → model and prediction.
        assigned: rows that challengers were to answer: position → name of the challenger in the log.
    """

    body: bytes
    codec: Codec
    received_at: float
    hints: RoutingHints = NO_HINTS
    context: RequestContext = NO_CONTEXT
    instances: list[dict[str, Any]] | None = None
    ids: Sequence[str] | None = None
    predictions_by_position: Mapping[int, tuple[ServedModel, RowPrediction]] = {}
    assigned: Mapping[int, str] = {}

    def measure_latency_us(self) -> int:
        """Return the microseconds since the request was received."""
        return round((time.perf_counter() - self.received_at) * 1e6)

    def decode(self, model: ServedModel) -> list[dict[str, Any]]:
        """Return its instances; raises like `Codec.decode`."""
        return self.codec.decode(model, self.body) if self.instances is None else self.instances


class CompletedRequest(NamedTuple):
    """A request after scoring: rows for the log, and the response that may be sent once they are committed.

    Attributes:
        rows: for the prediction log.
        body: of the response.
        classes: predicted by the request's own model, as metrics name them.
        instances: its rows, if they are logged one by one.
        other_predictions: predictions of other models.
    """

    rows: Sequence[Row]
    body: bytes
    classes: list[str]
    instances: Sequence[Instance] = ()
    other_predictions: Sequence[tuple[ServedModel, RowPrediction]] = ()
