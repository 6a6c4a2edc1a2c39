"""What the Open Inference Protocol, version 2, sends and answers: its paths, datatypes and documents."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flywheel_ml.core.contract import Label

MODEL = "/v2/models/{name}"
VERSIONED = f"{MODEL}/versions/{{version}}"
BINARY = "application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"
CONTENT_TYPE = "content_type"
"""The parameter by which MLServer's clients say how values are to be understood."""
EXTENSIONS = ("binary_tensor_data",)

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


class RequestTensor(BaseModel):
    """One column: `data`, flat or nested, or `parameters.binary_data_size` bytes after the JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Datatype
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that is wanted, in binary form if `parameters.binary_data` is true."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """Rows to predict; without `outputs`, all are told. `parameters.binary_data_output` asks for binary outputs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = Field(None, max_length=200)
    parameters: dict[str, Any] = {}
    inputs: list[RequestTensor] = Field(min_length=1, max_length=10_000)
    outputs: list[RequestedOutput] | None = None


class Tensor(BaseModel):
    """One output; a number that is no float64 is none of them."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, Any] | None = None
    data: list[Label | float] | None = None


class InferResponse(BaseModel):
    """The outputs that were asked for; `parameters` tell `variant` and `degraded`.

    Where several models answered, the outputs `model_version` and `variant` name that of each row, asked for or not.
    """

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[Tensor]


class TensorMetadata(BaseModel):
    """A tensor's name, datatype, and shape with -1 for the number of rows."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Any] | None = None


class ModelMetadata(BaseModel):
    """What the model takes and tells. The parameters say whether an input may be left out, and name the classes."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Whether the process lives."""

    live: bool


class ServerReady(BaseModel):
    """Whether traffic may be sent here."""

    ready: bool


class ModelReady(BaseModel):
    """Whether the model can answer."""

    name: str
    ready: bool
