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
        """The instances of a body; raises as `Schema.instances`."""
        return model.schema.instances(body)

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """The predictions; each names its model where models of several variants predicted."""
        if results.models and results.is_mixed:
            closing = _closing(model, results.degraded(model))
            return _document(_named(results), closing)
        closing = self._closings.get(model) or self._closings.setdefault(model, _closing(model, model.degraded))
        return _document(map(with_id, results.ids, results.outputs), closing)


def with_id(name: str, output: str) -> str:
    """A prediction's JSON object with its id."""
    return f'{{"id":"{name}",{output[1:]}'


def _named(results: Results) -> Iterable[str]:
    for name, output, model in zip(results.ids, results.outputs, results.models, strict=True):
        named = to_json({"model_version": model.ref.version, "variant": model.variant}).decode()[1:]
        yield f"{with_id(name, output)[:-1]},{named}"


def _closing(model: ServedModel, degraded: bool) -> str:
    """The end of a response: which model predicted."""
    facts = {"model_version": model.ref.version, "variant": model.variant, "degraded": degraded}
    return to_json(facts).decode()[1:]


def _document(predictions: Iterable[str], closing: str) -> bytes:
    return f'{{"predictions":[{",".join(predictions)}],{closing}'.encode()


NATIVE = NativeCodec()
