"""The Open Inference Protocol, version 2, over REST, with its binary tensors: what clients of KServe and Triton speak.

A tensor for each input column, of shape [n] or [n, 1]. Every datatype is taken whose values the column can have.
Missing values: null in JSON; NaN in floating tensors; an empty text, the column's own markers or the reserved text
`contract.MISSING` in BYTES; or no tensor at all where all are missing.
"""

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from flywheel_ml.core.contract import MISSING, Column
from flywheel_ml.serving.codecs.inference_documents import (
    CONTENT_TYPE,
    HEADER_LENGTH,
    Datatype,
    InferRequest,
    ModelMetadata,
    RequestTensor,
    TensorMetadata,
)
from flywheel_ml.serving.codecs.tabular import none_twice, not_too_many, refused, rows_of
from flywheel_ml.serving.errors import faults
from flywheel_ml.serving.errors.problems import Problem, shortened
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.prediction.requests import Results
from flywheel_ml.utils.config_model import suggest

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"{'U' * (kind == 'u')}INT{8 * size}": np.dtype(f"<{kind}{size}") for kind in "ui" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_LIMITS: dict[str, tuple[float, float]] = {
    name: (int(info.min), int(info.max)) if dtype.kind in "iu" else (float(info.min), float(info.max))
    for name, dtype in _DTYPES.items()
    if dtype.kind != "b"
    for info in [np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)]
}
"""Datatype → the least and the greatest number that it holds."""
_BY: dict[str, tuple[Datatype, int]] = {"model_version": ("BYTES", 0), "variant": ("BYTES", 0)}
"""Outputs that say which model answered each row: where that is asked for, and where it was not always the same."""


def require(model: ServedModel, name: str, version: str | None = None) -> None:
    """Whether this is the model that is asked for.

    Raises:
        Problem: 404.
    """
    own = model.bundle.manifest.name
    if name != own:
        raise Problem(404, "unknown-model", f"there is no model '{shortened(name, 100)}' here; there is '{own}'")
    if version is not None and version != model.ref.version:
        told = f"'{own}' has no version '{shortened(version, 100)}' in service; it has '{model.ref.version}'"
        raise Problem(404, "unknown-model", told)


def metadata(model: ServedModel) -> ModelMetadata:
    """The model in the protocol's terms."""
    reader = model.schema.reader
    return ModelMetadata(
        name=model.bundle.manifest.name,
        versions=[model.ref.version],
        platform="onnxruntime_onnx",
        inputs=[
            TensorMetadata(
                name=column.name,
                datatype=_datatype(column),
                shape=[-1],
                parameters={"optional": column.name not in reader.required},
            )
            for column in reader.columns.values()
        ],
        outputs=[
            TensorMetadata(
                name=name,
                datatype=datatype,
                shape=[-1, *([width] if width else [])],
                parameters={"classes": model.texts.class_names} if name == "probabilities" else None,
            )
            for name, (datatype, width) in (_outputs(model) | _BY).items()
        ],
    )


class Inference:
    """The `Codec` of one request.

    Args:
        header_length: bytes of the request's JSON, where tensors follow it.

    Attributes:
        told_header_length: the same of the answer, after `encode`.
    """

    def __init__(self, header_length: int | None) -> None:
        self.told_header_length: int | None = None
        self._header_length = header_length
        self._request: InferRequest

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        """The rows of a body; raises 400 where it cannot be read, 422 naming the tensor where that does not fit."""
        head = body[: self._header_length]
        if self._header_length is not None and len(head) < self._header_length:
            raise _malformed_header()
        self._request = _parsed(head)
        tensors = self._request.inputs
        is_text = all(tensor.datatype == "BYTES" for tensor in tensors)
        _require_content_type(CONTENT_TYPE, self._request.parameters, ("pd", "np", *(["str"] if is_text else [])))
        none_twice([tensor.name for tensor in tensors])
        columns: dict[str, list[Any]] = {}
        reader, at, rows = model.schema.reader, len(head), tensors[0].shape[0]
        for tensor in tensors:
            try:
                name = reader.field(tensor.name).name
            except ValueError as error:
                raise refused(tensor.name, str(error)) from None
            _fits(tensor, reader.columns.get(name), rows)
            not_too_many(rows, tensor.name, model.schema)
            if (size := tensor.parameters.get("binary_data_size")) is None:
                values = _from_list(tensor)
            else:
                values = _from_bytes(tensor, size, memoryview(body)[at:])
                at += size
            if tensor.parameters.get(CONTENT_TYPE) == "base64":
                values = _from_base64(tensor, values)
            columns[tensor.name] = [None if value == MISSING else value for value in values]
        if at != len(body):
            raise refused(None, f"{len(body) - at} bytes follow the request's last tensor")
        self._wanted(model)
        return model.schema.checked(rows_of(columns))

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """The outputs that were asked for, each as its own request wants it."""
        told = from_json(f"[{','.join(results.outputs)}]")
        models = results.by_row(model)
        found = {
            "prediction": [one["prediction"] for one in told],
            "probabilities": [value for one in told for value in one.get("probabilities", {}).values()],
            "interval": [end for one in told for end in one.get("interval", ())],
            "id": results.ids,
            "model_version": [one.ref.version for one in models],
            "variant": [one.variant for one in models],
        }
        outputs: list[dict[str, Any]] = []
        buffers: list[bytes] = []
        kinds = _outputs(model) | _BY
        for name, is_binary in self._wanted(model, results.is_mixed).items():
            datatype, width = kinds[name]
            told_of = {"name": name, "datatype": datatype, "shape": [len(results.ids), *([width] if width else [])]}
            if is_binary:
                buffers.append(_to_bytes(found[name], datatype))
                outputs.append({**told_of, "parameters": {"binary_data_size": len(buffers[-1])}})
            else:
                outputs.append({**told_of, "data": found[name]})
        head = to_json(
            {
                "model_name": model.bundle.manifest.name,
                "model_version": model.ref.version,
                **({"id": self._request.id} if self._request.id is not None else {}),
                "parameters": {"variant": model.variant, "degraded": results.degraded(model)},
                "outputs": outputs,
            }
        )
        self.told_header_length = len(head) if buffers else None
        return b"".join((head, *buffers))

    def _wanted(self, model: ServedModel, is_of_several: bool = False) -> dict[str, bool]:
        """Name of each output that is wanted → whether in binary form."""
        request = self._request
        usual = request.parameters.get("binary_data_output") is True
        own = dict.fromkeys(_BY, usual) if is_of_several else {}
        if not request.outputs:
            return dict.fromkeys(_outputs(model), usual) | own
        known = _outputs(model) | _BY
        for output in request.outputs:
            if output.name not in known:
                raise refused(output.name, f"unknown output; {suggest(output.name, list(known))}")
            _require_content_type(output.name, output.parameters, _content_types(known[output.name][0]))
            if "classification" in output.parameters:
                raise refused(output.name, "classification is not supported; ask for 'probabilities'")
        return own | {output.name: output.parameters.get("binary_data", usual) is True for output in request.outputs}


def header_length_of(headers: Mapping[bytes, bytes]) -> int | None:
    """Bytes of a request's JSON, where its head says that tensors follow.

    Raises:
        Problem: 400 where that is no number.
    """
    told = headers.get(HEADER_LENGTH)
    if told is None:
        return None
    if not told.isdigit() or len(told) > 12:
        raise _malformed_header()
    return int(told)


def _malformed_header() -> Problem:
    told = "'Inference-Header-Content-Length' must be the number of bytes of the JSON that the body begins with"
    return Problem(400, "malformed-header", told)


def _parsed(head: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = first["loc"]
        if len(place) < 3 or place[0] not in ("inputs", "outputs"):
            raise faults.problem(error, list(InferRequest.model_fields)) from None
        # A tensor is known by its name, not by its place in a list.
        name = from_json(head)[place[0]][place[1]].get("name")
        rule = f"{'.'.join(str(part) for part in place[2:])}: {first['msg']}"
        found = {} if first["type"] == "missing" else {"value": first["input"]}
        raise refused(name if isinstance(name, str) else f"{place[0]}.{place[1]}", rule, **found) from None


def _fits(tensor: RequestTensor, column: Column | None, rows: int) -> None:
    shape = tensor.shape
    if shape[0] != rows or shape[1:] not in ([], [1]):
        wanted = f"must have the shape [{rows}] or [{rows}, 1], as the first tensor's"
        raise refused(tensor.name, wanted, value=str(shape))
    if rows < 1:
        raise refused(tensor.name, "must have at least 1 row", value=str(shape))
    is_text = tensor.datatype == "BYTES"
    encodings = (*(["base64"] if is_text else []), *(["datetime"] if column and column.type == "datetime" else []))
    _require_content_type(tensor.name, tensor.parameters, (*_content_types(tensor.datatype), *encodings))


def _content_types(datatype: Datatype) -> tuple[str, ...]:
    """MLServer's content types that say of a tensor what its datatype says."""
    return ("np", "str") if datatype == "BYTES" else ("np",)


def _require_content_type(field: str, parameters: Mapping[str, Any], fitting: Sequence[str]) -> None:
    """Refuse a content type that would have the values mean something else; raises 422."""
    found = parameters.get(CONTENT_TYPE)
    if found is not None and found not in fitting:
        ways = " or ".join(f"'{one}'" for one in fitting)
        raise refused(field, f"must have the content_type {ways}, or none", value=found)


def _from_list(tensor: RequestTensor) -> list[Any]:
    if tensor.data is None:
        raise refused(tensor.name, "has neither data nor parameters.binary_data_size")
    data = tensor.data
    if any(isinstance(row, list) for row in data):
        data = _from_nested(tensor, data)
    if len(data) != tensor.shape[0]:
        raise refused(tensor.name, f"has {len(data)} values in data, and {tensor.shape[0]} by its shape")
    kinds = {"B": (str, "a string"), "I": (int, "an integer"), "U": (int, "an integer"), "F": (int | float, "a number")}
    kind, called = (bool, "true or false") if tensor.datatype == "BOOL" else kinds[tensor.datatype[0]]
    for at, value in enumerate(data):
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise refused(tensor.name, f"must be {called} by its datatype {tensor.datatype}", at, value=value)
    if limits := _LIMITS.get(tensor.datatype):
        _require_within(tensor, data, *limits)
    return data


def _require_within(tensor: RequestTensor, data: Sequence[Any], least: float, greatest: float) -> None:
    for at, value in enumerate(data):
        # NaN and the infinities are floating-point numbers, too.
        if value is not None and (value < least or value > greatest) and abs(value) != math.inf:
            rule = f"must be from {least:g} to {greatest:g} by its datatype {tensor.datatype}"
            raise refused(tensor.name, rule, at, value=value)


def _from_nested(tensor: RequestTensor, data: Sequence[Any]) -> list[Any]:
    """The values of lists in a list, which have to be as many and as long as the shape says."""
    if len(tensor.shape) == 1:
        raise refused(tensor.name, f"must be flat by its shape {tensor.shape}")
    for at, row in enumerate(data):
        if not isinstance(row, list) or len(row) != tensor.shape[1]:
            raise refused(tensor.name, f"must be lists of {tensor.shape[1]} value by its shape", at, value=row)
    return [value for row in data for value in row]


def _from_base64(tensor: RequestTensor, values: Sequence[str | None]) -> list[str | None]:
    texts: list[str | None] = []
    for at, value in enumerate(values):
        try:
            texts.append(None if value is None else base64.b64decode(value, validate=True).decode())
        except (binascii.Error, ValueError):
            raise refused(tensor.name, "must be text in UTF-8, encoded as base64", at, value=value) from None
    return texts


def _from_bytes(tensor: RequestTensor, size: Any, rest: memoryview) -> list[Any]:
    if type(size) is not int or size < 0 or size > len(rest):
        raise refused(tensor.name, f"has {len(rest)} bytes left for its binary_data_size", value=size)
    if tensor.data is not None:
        raise refused(tensor.name, "has data and binary_data_size; leave one out")
    if tensor.datatype == "BYTES":
        return _texts(tensor, bytes(rest[:size]))
    dtype = _DTYPES[tensor.datatype]
    if size != tensor.shape[0] * dtype.itemsize:
        raise refused(tensor.name, f"needs {tensor.shape[0] * dtype.itemsize} bytes by its shape", value=size)
    values: list[Any] = np.frombuffer(rest, dtype, tensor.shape[0]).tolist()
    return values


def _texts(tensor: RequestTensor, buffer: bytes) -> list[str]:
    """Each text is preceded by its length: four bytes, the lowest first."""
    texts: list[str] = []
    at = 0
    try:
        while at < len(buffer) and len(texts) <= tensor.shape[0]:
            (length,) = struct.unpack_from("<I", buffer, at)
            at += 4 + length
            if at > len(buffer):
                raise refused(tensor.name, "ends within a text", len(texts))
            texts.append(buffer[at - length : at].decode())
    except (struct.error, UnicodeDecodeError):
        raise refused(tensor.name, "must be texts in UTF-8, each after its length in 4 bytes", len(texts)) from None
    if len(texts) != tensor.shape[0]:
        raise refused(tensor.name, f"has other than {tensor.shape[0]} texts, which it has by its shape")
    return texts


def _datatype(column: Column) -> Datatype:
    """The one that can say all that the column can hold, missing values included."""
    if not column.is_numeric:
        return "BYTES"
    if column.type == "float" or column.nullable:
        return "FP64"
    return "INT64" if column.type == "integer" else "BOOL"


def _outputs(model: ServedModel) -> dict[str, tuple[Datatype, int]]:
    """Name → datatype, and how many numbers a row has (0: a plain column)."""
    target, classes = model.bundle.contract.target, model.bundle.manifest.classes
    if not classes:
        return {"prediction": ("FP64", 0), "interval": ("FP64", 2), "id": ("BYTES", 0)}
    kinds: dict[str, Datatype] = {"boolean": "BOOL", "integer": "INT64", "string": "BYTES"}
    return {
        "prediction": (kinds[target.type], 0),
        "probabilities": ("FP64", len(classes)),
        "id": ("BYTES", 0),
    }


def _to_bytes(values: Sequence[Any], datatype: Datatype) -> bytes:
    if datatype != "BYTES":
        return np.array(values, _DTYPES[datatype]).tobytes()
    texts = [value.encode() for value in values]
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
