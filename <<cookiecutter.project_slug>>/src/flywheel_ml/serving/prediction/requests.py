"""Prediction requests, what completes them, and how a protocol decodes and encodes them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flywheel_ml.prediction_log import Row
from flywheel_ml.serving.experiments.assignment import NO_HINTS, RoutingHints
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.observability.tracing import NO_REQUEST, RequestContext

Instance = Mapping[str, Any]


class Results(NamedTuple):
    """The predictions of a request, in the order of its rows.

    Attributes:
        ids: of the predictions.
        outputs: JSON objects, as `OutputTexts` writes them.
        models: what predicted each row; empty if the request's own model predicted all.
    """

    ids: Sequence[str]
    outputs: Sequence[str]
    models: Sequence[ServedModel] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether models of different variants predicted the rows."""
        return any(model.variant != self.models[0].variant for model in self.models)

    def by_row(self, model: ServedModel) -> Sequence[ServedModel]:
        """The model of each row; `model` is the request's own."""
        return self.models or [model] * len(self.ids)

    def degraded(self, model: ServedModel) -> bool:
        """Whether a stand-in predicted one of the rows; `model` is the request's own."""
        return any(one.degraded for one in self.models) if self.models else model.degraded


class Codec(Protocol):
    """Decodes the requests of one protocol and encodes its responses.

    A codec that has to remember something of a request is made anew for each.
    """

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        """The instances of a body, checked by the contract.

        Raises:
            Problem: 400, 415 or 422.
        """
        ...

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """The body of the response, sent once the predictions are committed."""
        ...


class RowPrediction(NamedTuple):
    """One row's prediction: a JSON object, the class as metrics name it, the score."""

    output: str
    class_name: str
    score: float


class PredictRequest(NamedTuple):
    """A request for predictions.

    Attributes:
        body: as it was received.
        codec: of its protocol.
        received_at: `time.perf_counter`.
        hints: what its headers say about which model answers.
        context: by what it is known in log lines.
        instances: its rows, once they were decoded.
        ids: of their predictions, once it is clear who answers which row.
        answered: rows that another model has answered: place → model and prediction.
    """

    body: bytes
    codec: Codec
    received_at: float
    hints: RoutingHints = NO_HINTS
    context: RequestContext = NO_REQUEST
    instances: list[dict[str, Any]] | None = None
    ids: Sequence[str] | None = None
    answered: Mapping[int, tuple[ServedModel, RowPrediction]] = {}

    def microseconds(self) -> int:
        """Microseconds since it was received."""
        return round((time.perf_counter() - self.received_at) * 1e6)

    def decoded(self, model: ServedModel) -> list[dict[str, Any]]:
        """Its instances; raises as `Codec.decode`."""
        return self.codec.decode(model, self.body) if self.instances is None else self.instances


class Completed(NamedTuple):
    """A request after scoring: rows for the log, and the response that may be sent once they are committed.

    Attributes:
        rows: for the prediction log.
        content: body of the response.
        classes: predicted by the request's own model, as metrics name them.
        instances: its rows, where they are logged one by one.
        others: what other models predicted.
    """

    rows: Sequence[Row]
    content: bytes
    classes: list[str]
    instances: Sequence[Instance] = ()
    others: Sequence[tuple[ServedModel, RowPrediction]] = ()
