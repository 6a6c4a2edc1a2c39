"""The description of the API; changes with the model that answers."""

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
ABOUT = """Predictions of one model, checked against its data contract and logged before they are answered.

Errors are problem documents (RFC 9457): `type` is stable for programs, `detail` is for people,
and a 422 lists each field that does not fit with the rule it broke."""

KEYS = [
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="X-API-Key")),
    Security(HTTPBearer(auto_error=False, scheme_name="Bearer")),
]
"""What a route that may ask for a key depends on, for its description; `security.Guard` does the asking."""

_BODY_ERRORS = {
    400: "The body is not valid JSON.",
    408: "The body was not there in time.",
    413: "The body is too large.",
    415: "The body is declared as something else.",
    422: "Something does not fit the contract; `errors` lists fields and rules.",
}
_FEEDBACK_ERRORS = {404: "Some ids belong to no prediction.", 409: "A prediction already has another label."}
_EXPLAIN_ERRORS = {
    409: "There is nothing to explain: no model answers now, or its bundle carries no rows to compare with.",
    503: "There is no model, or too many explanations are asked for; try again after `Retry-After` seconds.",
}
_KEY = "Where rows have no id: rows of one key are answered by one model, while one is tried out beside the champion."
_VARIANT = (
    "`challenger` or `champion`: who shall answer. For testers; counts only where the server's settings allow it."
)
_TEXT = {"description": "what logs and traces call the request", "required": True, "schema": {"type": "string"}}
_REQUEST_ID = {"X-Request-Id": _TEXT}
_WAIT = {"description": "seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}
_HEADERS: dict[int, dict[str, Any]] = {429: {"Retry-After": _WAIT}, 503: {"Retry-After": _WAIT}}
UNKNOWN_MODEL = {404: "The model in service has another name or version."}
OPEN_ERRORS = {431: "The request's head is too large."}
ANY_ERRORS = {
    **OPEN_ERRORS,
    401: "The key is missing or wrong.",
    403: "The key lacks the scope that the route needs.",
    429: "The key asks too often; try again after `Retry-After` seconds.",
}
UNAVAILABLE = {503: "There is no model, or no log, or the server is stopping; try again after `Retry-After` seconds."}


def asset(name: str) -> Path | None:
    """A file of the docs page, which would otherwise load its scripts from a public server."""
    package = find_spec("fastapi_offline")
    if name not in FILES or package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "static" / name


def describe(app: FastAPI, schema: Schema | None, root_path: str = "") -> dict[str, Any]:
    """The OpenAPI document for the model whose schema is given; without one, instances are any objects."""
    document: dict[str, Any] = get_openapi(
        title=app.title, version=VERSION, description=ABOUT, routes=[*_documented(schema), *app.routes]
    )
    # By default where the document is: right behind any proxy, which need not tell its prefix.
    document["servers"] = [{"url": root_path or "."}]
    problem = TypeAdapter(ProblemDocument).json_schema(ref_template="#/components/schemas/{model}")
    schemas = document["components"]["schemas"]
    schemas |= {**problem.pop("$defs"), ProblemDocument.__name__: problem}
    # FastAPI has every route with a parameter answer 422 in its own form; texts in a path always fit.
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def problems(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Error answers in the form that routes take them."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}}}
    return {
        status: {"description": text, "content": content, "headers": _HEADERS.get(status, {}) | _REQUEST_ID}
        for status, text in statuses.items()
    }


def _documented(schema: Schema | None) -> list[APIRoute]:
    """Routes that are never called: they say in FastAPI's terms what the plain routes take and answer."""
    errors = ANY_ERRORS | _BODY_ERRORS | UNAVAILABLE
    row = schema.example if schema else {}
    split = {"columns": list(row), "data": [list(row.values())]}
    tensors = [_tensor(name, value) for name, value in row.items() if value is not None]
    anything = (dict[str, Any],) * 3
    taken, explained, labels = (
        (schema.predict_request, schema.explain_request, schema.feedback_request) if schema else anything
    )
    infer = (InferRequest, InferResponse, errors | UNKNOWN_MODEL, {"inputs": tensors}, BINARY, BINARY)
    return [
        _route("/predict", "Predict one or many instances", taken, Answers, errors, {"instances": [row]}, ARROW, ARROW),
        _route(
            "/explain",
            "Say what each column of one instance contributed to its prediction",
            explained,
            Explanations,
            errors | _EXPLAIN_ERRORS,
            {"instances": [row]},
        ),
        _route("/feedback", "Say what turned out", labels, Accepted, errors | _FEEDBACK_ERRORS),
        _route(
            "/invocations",
            "The same predictions in MLflow's and SageMaker's protocol",
            Invocation,
            Invoked,
            errors,
            {"dataframe_split": split},
            CSV,
        ),
        _route(f"{MODEL}/infer", "The same predictions in the Open Inference Protocol", *infer),
        _route(f"{VERSIONED}/infer", "The same, if this version is in service", *infer),
    ]


def _route(
    path: str,
    summary: str,
    taken: Any,
    told: Any,
    errors: Mapping[int, str],
    example: Any = None,
    also_taken: str = "",
    also_told: str = "",
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
    if also_taken:
        more["requestBody"] = {"content": {also_taken: bytes_of}}
    if also_told:
        more["responses"] = {"200": {"content": {also_told: bytes_of}}}
    return APIRoute(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        response_model=told,
        response_model_exclude_none=True,
        responses=problems(errors),
        dependencies=KEYS,
        openapi_extra=more,
    )


def _tensor(name: str, value: bool | float | str) -> dict[str, Any]:
    kinds = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
    return {"name": name, "datatype": kinds[type(value)], "shape": [1], "data": [value]}
