"""The API's own protocol: `{"instances": [{...}]}` in, `{"predictions": [{...}], ...}` out."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from pydantic_core import to_json

from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.prediction.requests import Results


class NativeCodec:
    """Decodes and encodes the API's own protocol."""

    def __init__(self) -> None:
        self._closings: WeakKeyDictionary[ServedModel, str] = WeakKeyDictionary()

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        """Return the instances of a body; raises like `Schema.parse_instances`."""
        return model.schema.parse_instances(body)

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """Return the response; each prediction names its model if models of several variants predicted."""
        if results.models and results.is_mixed:
            closing = _build_closing(model, results.is_degraded(model))
            return _build_document(_add_model_names(results), closing)
        closing = self._closings.get(model) or self._closings.setdefault(model, _build_closing(model, model.degraded))
        return _build_document(map(add_id, results.ids, results.outputs), closing)


def add_id(name: str, output: str) -> str:
    """Add an id to a prediction's JSON object."""
    return f'{{"id":"{name}",{output[1:]}'


def _add_model_names(results: Results) -> Iterable[str]:
    for name, output, model in zip(results.ids, results.outputs, results.models, strict=True):
        named = to_json({"model_version": model.ref.version, "variant": model.variant}).decode()[1:]
        yield f"{add_id(name, output)[:-1]},{named}"


def _build_closing(model: ServedModel, degraded: bool) -> str:
    """Build the end of a response, which names the model."""
    facts = {"model_version": model.ref.version, "variant": model.variant, "degraded": degraded}
    return to_json(facts).decode()[1:]


def _build_document(predictions: Iterable[str], closing: str) -> bytes:
    return f'{{"predictions":[{",".join(predictions)}],{closing}'.encode()


NATIVE = NativeCodec()
