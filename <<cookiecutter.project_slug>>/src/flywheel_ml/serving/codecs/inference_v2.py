"""The Open Inference Protocol, version 2, over REST with binary tensors, as clients of KServe and Triton use it.

A request has a tensor for each input column, of shape [n] or [n, 1]. It may have any datatype that fits the column.
Missing values are null in JSON, NaN in floating-point tensors, and in BYTES an empty text, the column's own markers or
the reserved text `contract.MISSING`. If all values of a column are missing, its tensor may be left out.
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
from flywheel_ml.serving.codecs.tabular import (
    build_field_problem,
    build_rows,
    check_row_limit,
    reject_duplicate_columns,
)
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.errors.problems import Problem, shorten
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
"""Datatype → its minimum and maximum."""
_MODEL_OUTPUTS: dict[str, tuple[Datatype, int]] = {"model_version": ("BYTES", 0), "variant": ("BYTES", 0)}
"""Outputs that name the model of each row; returned if requested, or if several models answered."""


def require_model(model: ServedModel, name: str, version: str | None = None) -> None:
    """Check that the requested model is in service.

    Raises:
        Problem: 404 if it is not.
    """
    own = model.bundle.manifest.name
    if name != own:
        raise Problem(404, "unknown-model", f"there is no model '{shorten(name, 100)}' here; there is '{own}'")
    if version is not None and version != model.ref.version:
        detail = f"'{own}' has no version '{shorten(version, 100)}' in service; it has '{model.ref.version}'"
        raise Problem(404, "unknown-model", detail)


def build_metadata(model: ServedModel) -> ModelMetadata:
    """Build the protocol's metadata of a model."""
    validator = model.schema.row_validator
    return ModelMetadata(
        name=model.bundle.manifest.name,
        versions=[model.ref.version],
        platform="onnxruntime_onnx",
        inputs=[
            TensorMetadata(
                name=column.name,
                datatype=_choose_datatype(column),
                shape=[-1],
                parameters={"optional": column.name not in validator.required},
            )
            for column in validator.columns.values()
        ],
        outputs=[
            TensorMetadata(
                name=name,
                datatype=datatype,
                shape=[-1, *([width] if width else [])],
                parameters={"classes": model.formatter.class_names} if name == "probabilities" else None,
            )
            for name, (datatype, width) in (_list_outputs(model) | _MODEL_OUTPUTS).items()
        ],
    )


class InferenceCodec:
    """The `Codec` of one request.

    Args:
        header_length: bytes of the request's JSON if binary tensors follow it, else None.

    Attributes:
        response_header_length: the same for the response; set by `encode`.
    """

    def __init__(self, header_length: int | None) -> None:
        self.response_header_length: int | None = None
        self._header_length = header_length
        self._request: InferRequest

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        """Return the rows of a body; raises 400 if it is malformed, 422 that names an invalid tensor."""
        head = body[: self._header_length]
        if self._header_length is not None and len(head) < self._header_length:
            raise _build_header_problem()
        self._request = _parse_request(head)
        tensors = self._request.inputs
        is_text = all(tensor.datatype == "BYTES" for tensor in tensors)
        _require_content_type(CONTENT_TYPE, self._request.parameters, ("pd", "np", *(["str"] if is_text else [])))
        reject_duplicate_columns([tensor.name for tensor in tensors])
        columns: dict[str, list[Any]] = {}
        validator, at, rows = model.schema.row_validator, len(head), tensors[0].shape[0]
        for tensor in tensors:
            try:
                name = validator.find_field(tensor.name).name
            except ValueError as error:
                raise build_field_problem(tensor.name, str(error)) from None
            _check_tensor(tensor, validator.columns.get(name), rows)
            check_row_limit(rows, tensor.name, model.schema)
            if (size := tensor.parameters.get("binary_data_size")) is None:
                values = _read_list(tensor)
            else:
                values = _read_binary(tensor, size, memoryview(body)[at:])
                at += size
            if tensor.parameters.get(CONTENT_TYPE) == "base64":
                values = _decode_base64(tensor, values)
            columns[tensor.name] = [None if value == MISSING else value for value in values]
        if at != len(body):
            raise build_field_problem(
                None, f"{len(body) - at} bytes follow the last tensor of the request; remove them"
            )
        self._select_outputs(model)
        return model.schema.validate_rows(build_rows(columns))

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """Return the requested outputs, each as JSON or in binary form as requested."""
        predictions = from_json(f"[{','.join(results.outputs)}]")
        models = results.list_models(model)
        found = {
            "prediction": [one["prediction"] for one in predictions],
            "probabilities": [value for one in predictions for value in one.get("probabilities", {}).values()],
            "interval": [end for one in predictions for end in one.get("interval", ())],
            "id": results.ids,
            "model_version": [one.ref.version for one in models],
            "variant": [one.variant for one in models],
        }
        outputs: list[dict[str, Any]] = []
        buffers: list[bytes] = []
        kinds = _list_outputs(model) | _MODEL_OUTPUTS
        for name, is_binary in self._select_outputs(model, results.is_mixed).items():
            datatype, width = kinds[name]
            description = {"name": name, "datatype": datatype, "shape": [len(results.ids), *([width] if width else [])]}
            if is_binary:
                buffers.append(_encode_binary(found[name], datatype))
                outputs.append({**description, "parameters": {"binary_data_size": len(buffers[-1])}})
            else:
                outputs.append({**description, "data": found[name]})
        head = to_json(
            {
                "model_name": model.bundle.manifest.name,
                "model_version": model.ref.version,
                **({"id": self._request.id} if self._request.id is not None else {}),
                "parameters": {"variant": model.variant, "degraded": results.is_degraded(model)},
                "outputs": outputs,
            }
        )
        self.response_header_length = len(head) if buffers else None
        return b"".join((head, *buffers))

    def _select_outputs(self, model: ServedModel, is_of_several: bool = False) -> dict[str, bool]:
        """Return the requested outputs: name → whether in binary form."""
        request = self._request
        usual = request.parameters.get("binary_data_output") is True
        own = dict.fromkeys(_MODEL_OUTPUTS, usual) if is_of_several else {}
        if not request.outputs:
            return dict.fromkeys(_list_outputs(model), usual) | own
        known = _list_outputs(model) | _MODEL_OUTPUTS
        for output in request.outputs:
            if output.name not in known:
                raise build_field_problem(output.name, f"unknown output; {suggest(output.name, list(known))}")
            _require_content_type(output.name, output.parameters, _list_content_types(known[output.name][0]))
            if "classification" in output.parameters:
                raise build_field_problem(output.name, "classification is not supported; ask for 'probabilities'")
        return own | {output.name: output.parameters.get("binary_data", usual) is True for output in request.outputs}


def parse_header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Parse the length of a request's JSON from its headers; None if no binary tensors follow.

    Raises:
        Problem: 400 if it is not a number.
    """
    length = headers.get(HEADER_LENGTH)
    if length is None:
        return None
    if not length.isdigit() or len(length) > 12:
        raise _build_header_problem()
    return int(length)


def _build_header_problem() -> Problem:
    detail = "'Inference-Header-Content-Length' must be the number of bytes of the JSON at the start of the body"
    return Problem(400, "malformed-header", detail)


def _parse_request(head: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = first["loc"]
        if len(place) < 3 or place[0] not in ("inputs", "outputs"):
            raise validation_errors.build_problem(error, list(InferRequest.model_fields)) from None
        # Errors name a tensor, not its position in the list.
        name = from_json(head)[place[0]][place[1]].get("name")
        rule = f"{'.'.join(str(part) for part in place[2:])}: {first['msg']}"
        found = {} if first["type"] == "missing" else {"value": first["input"]}
        raise build_field_problem(name if isinstance(name, str) else f"{place[0]}.{place[1]}", rule, **found) from None


def _check_tensor(tensor: RequestTensor, column: Column | None, rows: int) -> None:
    shape = tensor.shape
    if shape[0] != rows or shape[1:] not in ([], [1]):
        wanted = f"must have the shape [{rows}] or [{rows}, 1], as the first tensor's"
        raise build_field_problem(tensor.name, wanted, value=str(shape))
    if rows < 1:
        raise build_field_problem(tensor.name, "must have at least 1 row", value=str(shape))
    is_text = tensor.datatype == "BYTES"
    encodings = (*(["base64"] if is_text else []), *(["datetime"] if column and column.type == "datetime" else []))
    _require_content_type(tensor.name, tensor.parameters, (*_list_content_types(tensor.datatype), *encodings))


def _list_content_types(datatype: Datatype) -> tuple[str, ...]:
    """Return MLServer's content types that agree with a datatype."""
    return ("np", "str") if datatype == "BYTES" else ("np",)


def _require_content_type(field: str, parameters: Mapping[str, Any], fitting: Sequence[str]) -> None:
    """Reject a content type that would change the meaning of the values; raises 422."""
    found = parameters.get(CONTENT_TYPE)
    if found is not None and found not in fitting:
        ways = " or ".join(f"'{one}'" for one in fitting)
        raise build_field_problem(field, f"must have the content_type {ways}, or no content_type", value=found)


def _read_list(tensor: RequestTensor) -> list[Any]:
    if tensor.data is None:
        raise build_field_problem(tensor.name, "has neither data nor parameters.binary_data_size")
    data = tensor.data
    if any(isinstance(row, list) for row in data):
        data = _flatten(tensor, data)
    if len(data) != tensor.shape[0]:
        raise build_field_problem(tensor.name, f"has {len(data)} values in data, and {tensor.shape[0]} by its shape")
    kinds = {"B": (str, "a string"), "I": (int, "an integer"), "U": (int, "an integer"), "F": (int | float, "a number")}
    kind, called = (bool, "true or false") if tensor.datatype == "BOOL" else kinds[tensor.datatype[0]]
    for at, value in enumerate(data):
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise build_field_problem(
                tensor.name, f"must be {called} by its datatype {tensor.datatype}", at, value=value
            )
    if limits := _LIMITS.get(tensor.datatype):
        _require_within(tensor, data, *limits)
    return data


def _require_within(tensor: RequestTensor, data: Sequence[Any], least: float, greatest: float) -> None:
    for at, value in enumerate(data):
        # NaN and infinities are valid floating-point values.
        if value is not None and (value < least or value > greatest) and abs(value) != math.inf:
            rule = f"must be from {least:g} to {greatest:g} by its datatype {tensor.datatype}"
            raise build_field_problem(tensor.name, rule, at, value=value)


def _flatten(tensor: RequestTensor, data: Sequence[Any]) -> list[Any]:
    """Flatten nested lists; their lengths must match the shape."""
    if len(tensor.shape) == 1:
        raise build_field_problem(tensor.name, f"must be flat by its shape {tensor.shape}")
    for at, row in enumerate(data):
        if not isinstance(row, list) or len(row) != tensor.shape[1]:
            raise build_field_problem(
                tensor.name, f"must be lists of {tensor.shape[1]} value by its shape", at, value=row
            )
    return [value for row in data for value in row]


def _decode_base64(tensor: RequestTensor, values: Sequence[str | None]) -> list[str | None]:
    texts: list[str | None] = []
    for at, value in enumerate(values):
        try:
            texts.append(None if value is None else base64.b64decode(value, validate=True).decode())
        except (binascii.Error, ValueError):
            raise build_field_problem(
                tensor.name, "must be text in UTF-8, encoded as base64", at, value=value
            ) from None
    return texts


def _read_binary(tensor: RequestTensor, size: Any, rest: memoryview) -> list[Any]:
    if type(size) is not int or size < 0 or size > len(rest):
        raise build_field_problem(tensor.name, f"has {len(rest)} bytes left for its binary_data_size", value=size)
    if tensor.data is not None:
        raise build_field_problem(tensor.name, "has data and binary_data_size; leave one out")
    if tensor.datatype == "BYTES":
        return _read_texts(tensor, bytes(rest[:size]))
    dtype = _DTYPES[tensor.datatype]
    if size != tensor.shape[0] * dtype.itemsize:
        raise build_field_problem(
            tensor.name, f"needs {tensor.shape[0] * dtype.itemsize} bytes by its shape", value=size
        )
    values: list[Any] = np.frombuffer(rest, dtype, tensor.shape[0]).tolist()
    return values


def _read_texts(tensor: RequestTensor, buffer: bytes) -> list[str]:
    """Each text is preceded by its length: four bytes, the lowest first."""
    texts: list[str] = []
    at = 0
    try:
        while at < len(buffer) and len(texts) <= tensor.shape[0]:
            (length,) = struct.unpack_from("<I", buffer, at)
            at += 4 + length
            if at > len(buffer):
                raise build_field_problem(tensor.name, "ends within a text", len(texts))
            texts.append(buffer[at - length : at].decode())
    except (struct.error, UnicodeDecodeError):
        raise build_field_problem(
            tensor.name, "must be texts in UTF-8, each after its length in 4 bytes", len(texts)
        ) from None
    if len(texts) != tensor.shape[0]:
        raise build_field_problem(
            tensor.name, f"contains a different number of texts than its shape says ({tensor.shape[0]})"
        )
    return texts


def _choose_datatype(column: Column) -> Datatype:
    """Return the datatype that can represent all values of a column, including missing ones."""
    if not column.is_numeric:
        return "BYTES"
    if column.type == "float" or column.nullable:
        return "FP64"
    return "INT64" if column.type == "integer" else "BOOL"


def _list_outputs(model: ServedModel) -> dict[str, tuple[Datatype, int]]:
    """Return the model's outputs: name → datatype and numbers per row (0 for a plain column)."""
    target, classes = model.bundle.contract.target, model.bundle.manifest.classes
    if not classes:
        return {"prediction": ("FP64", 0), "interval": ("FP64", 2), "id": ("BYTES", 0)}
    kinds: dict[str, Datatype] = {"boolean": "BOOL", "integer": "INT64", "string": "BYTES"}
    return {
        "prediction": (kinds[target.type], 0),
        "probabilities": ("FP64", len(classes)),
        "id": ("BYTES", 0),
    }


def _encode_binary(values: Sequence[Any], datatype: Datatype) -> bytes:
    if datatype != "BYTES":
        return np.array(values, _DTYPES[datatype]).tobytes()
    texts = [value.encode() for value in values]
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
