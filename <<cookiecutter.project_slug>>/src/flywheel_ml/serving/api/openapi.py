"""The OpenAPI document; it changes with the model in service."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Security
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import TypeAdapter

from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.inference_documents import BINARY, MODEL, VERSIONED, InferRequest, InferResponse
from flywheel_ml.serving.codecs.invocations import CSV, Invocation, Invoked
from flywheel_ml.serving.errors.problems import MEDIA_TYPE, ProblemDocument
from flywheel_ml.serving.schema.documents import Accepted, Answers, Explanations
from flywheel_ml.serving.schema.request_schema import Schema

VERSION = "1"
FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
ABOUT = """Predictions of one model.

Rows are validated by its data contract. Predictions are logged before the response is sent.

Errors are problem documents (RFC 9457): `type` is stable for programs, `detail` is for people,
and a 422 lists each invalid field with the rule that it breaks."""

KEYS = [
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="X-API-Key")),
    Security(HTTPBearer(auto_error=False, scheme_name="Bearer")),
]
"""Dependencies that document the API key of a route; `Guard` checks the key."""

BODY_ERRORS = {
    400: "The body is not valid JSON.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The media type of the body is not supported.",
    422: "The body breaks the contract; `errors` lists fields and rules.",
}
_FEEDBACK_ERRORS = {
    404: "Some ids are not ids of predictions.",
    409: "A prediction already has a different label or value.",
}
_EXPLAIN_ERRORS = {
    409: "The model cannot be explained: only a class prior answers, or its bundle has no background rows.",
    503: "There is no model, or too many explanations are in progress; try again after `Retry-After` seconds.",
}
_KEY = "For rows without an id: during an experiment, one model answers all rows with the same key."
_VARIANT = (
    "`champion`, `challenger` or a version: the model to answer. For testers; ignored unless the server's settings "
    "allow it."
)
_TEXT = {"description": "id of the request in logs and traces", "required": True, "schema": {"type": "string"}}
_REQUEST_ID = {"X-Request-Id": _TEXT}
_WAIT = {"description": "seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}
_HEADERS: dict[int, dict[str, Any]] = {429: {"Retry-After": _WAIT}, 503: {"Retry-After": _WAIT}}
UNKNOWN_MODEL = {404: "The model in service has another name or version."}
OPEN_ERRORS = {431: "The request's head is too large."}
ANY_ERRORS = {
    **OPEN_ERRORS,
    401: "The key is missing or wrong.",
    403: "The key lacks the scope that the route needs.",
    429: "The key exceeded its rate limit; try again after `Retry-After` seconds.",
}
UNAVAILABLE = {
    503: "There is no model, the log is unavailable, or the server is stopping; try again after `Retry-After` seconds."
}


def find_asset(name: str) -> Path | None:
    """Find a local file of the docs page, which would otherwise load its scripts from a public server."""
    package = find_spec("fastapi_offline")
    if name not in FILES or package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "static" / name


def build_openapi(app: FastAPI, schema: Schema | None, root_path: str = "") -> dict[str, Any]:
    """Build the OpenAPI document for a model's schema; without a schema, instances are arbitrary objects."""
    document: dict[str, Any] = get_openapi(
        title=app.title, version=VERSION, description=ABOUT, routes=[*_document_routes(schema), *app.routes]
    )
    # Relative to the document by default, which is correct behind any proxy.
    document["servers"] = [{"url": root_path or "."}]
    problem = TypeAdapter(ProblemDocument).json_schema(ref_template="#/components/schemas/{model}")
    schemas = document["components"]["schemas"]
    schemas |= {**problem.pop("$defs"), ProblemDocument.__name__: problem}
    # FastAPI documents its own 422 for every route with a parameter; path parameters are strings and always valid.
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def describe_problems(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Describe error responses in the form that FastAPI's routes accept."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}}}
    return {
        status: {"description": text, "content": content, "headers": _HEADERS.get(status, {}) | _REQUEST_ID}
        for status, text in statuses.items()
    }


def _document_routes(schema: Schema | None) -> list[APIRoute]:
    """Build routes that are never called; they document the requests and responses of the ASGI routes."""
    errors = ANY_ERRORS | BODY_ERRORS | UNAVAILABLE
    row = schema.example if schema else {}
    split = {"columns": list(row), "data": [list(row.values())]}
    tensors = [_build_tensor(name, value) for name, value in row.items() if value is not None]
    anything = (dict[str, Any],) * 3
    taken, explained, labels = (
        (schema.predict_request, schema.explain_request, schema.feedback_request) if schema else anything
    )
    infer = (InferRequest, InferResponse, errors | UNKNOWN_MODEL, {"inputs": tensors}, BINARY, BINARY)
    return [
        _document_route(
            "/predict", "Predict one or many instances", taken, Answers, errors, {"instances": [row]}, ARROW, ARROW
        ),
        _document_route(
            "/explain",
            "Explain a prediction: the contribution of each column of one instance",
            explained,
            Explanations,
            errors | _EXPLAIN_ERRORS,
            {"instances": [row]},
        ),
        _document_route(
            "/feedback",
            "Send actual outcomes as labels, and values of business metrics",
            labels,
            Accepted,
            errors | _FEEDBACK_ERRORS,
        ),
        _document_route(
            "/invocations",
            "The same predictions in MLflow's and SageMaker's protocol",
            Invocation,
            Invoked,
            errors,
            {"dataframe_split": split},
            CSV,
        ),
        _document_route(f"{MODEL}/infer", "The same predictions in the Open Inference Protocol", *infer),
        _document_route(f"{VERSIONED}/infer", "The same, if this version is in service", *infer),
    ]


def _document_route(
    path: str,
    summary: str,
    taken: Any,
    response_model: Any,
    errors: Mapping[int, str],
    example: Any = None,
    request_media_type: str = "",
    response_media_type: str = "",
) -> APIRoute:
    def endpoint(body: Any) -> None: ...

    parameters = re.findall(r"{(\w+)}", path)
    examples: Any = {"examples": [example]} if example else {}
    wishes = {"x_routing_key": _KEY, "x_variant": _VARIANT} if path not in ("/explain", "/feedback") else {}
    endpoint.__annotations__ = {
        "body": Annotated[taken, Body(**examples)],
        **dict.fromkeys(parameters, str),
        **{name: Annotated[str | None, Header(description=text)] for name, text in wishes.items()},
    }
    endpoint.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(
                name, Parameter.KEYWORD_ONLY, annotation=kind, default=None if name in wishes else Parameter.empty
            )
            for name, kind in endpoint.__annotations__.items()
        ]
    )
    bytes_of = {"schema": {"type": "string", "format": "binary"}}
    more: dict[str, Any] = {}
    if request_media_type:
        more["requestBody"] = {"content": {request_media_type: bytes_of}}
    if response_media_type:
        more["responses"] = {"200": {"content": {response_media_type: bytes_of}}}
    return APIRoute(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        response_model=response_model,
        response_model_exclude_none=True,
        responses=describe_problems(errors),
        dependencies=KEYS,
        openapi_extra=more,
    )


def _build_tensor(name: str, value: bool | float | str) -> dict[str, Any]:
    kinds = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
    return {"name": name, "datatype": kinds[type(value)], "shape": [1], "data": [value]}
