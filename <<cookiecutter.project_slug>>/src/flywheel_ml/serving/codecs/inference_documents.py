"""Paths, datatypes and documents of the Open Inference Protocol, version 2."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flywheel_ml.core.contract import Label

MODEL = "/v2/models/{name}"
VERSIONED = f"{MODEL}/versions/{{version}}"
BINARY = "application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"
CONTENT_TYPE = "content_type"
"""The parameter with which MLServer's clients declare the encoding of values."""
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
    """A requested output, in binary form if `parameters.binary_data` is true."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """Rows to predict; without `outputs`, all outputs are returned.

    `parameters.binary_data_output` requests binary outputs.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = Field(None, max_length=200)
    parameters: dict[str, Any] = {}
    inputs: list[RequestTensor] = Field(min_length=1, max_length=10_000)
    outputs: list[RequestedOutput] | None = None


class Tensor(BaseModel):
    """One output of a response."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, Any] | None = None
    data: list[Label | float] | None = None


class InferResponse(BaseModel):
    """The requested outputs; `parameters` contain `variant` and `degraded`.

    If several models answered, the outputs `model_version` and `variant` name the model of each row. They are included
    even if they were not requested.
    """

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[Tensor]


class TensorMetadata(BaseModel):
    """A tensor's name, datatype and shape; -1 is the number of rows."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Any] | None = None


class ModelMetadata(BaseModel):
    """The model's inputs and outputs. Parameters state whether an input is optional, and list the classes."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The server's name, version and extensions."""

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
