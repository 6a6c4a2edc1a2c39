"""The description of the API; changes with the model that answers."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Security
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import TypeAdapter

from .problems import MEDIA_TYPE, ProblemDocument
from .schemas import Accepted, Answers, Schema

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
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "Something does not fit the contract; `errors` lists fields and rules.",
}
_FEEDBACK_ERRORS = {404: "Some ids belong to no prediction.", 409: "A prediction already has another label."}
ANY_ERRORS = {401: "The key is missing or wrong."}
UNAVAILABLE = {503: "There is no model, or no log, or the server is stopping; try again after `Retry-After` seconds."}


def asset(name: str) -> Path | None:
    """A file of the docs page, which would otherwise load its scripts from a public server."""
    package = find_spec("fastapi_offline")
    if name not in FILES or package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "static" / name


def describe(app: FastAPI, schema: Schema | None) -> dict[str, Any]:
    """The OpenAPI document for the model whose schema is given; without one, instances are any objects."""
    document: dict[str, Any] = get_openapi(
        title=app.title, version=VERSION, description=ABOUT, routes=[*_documented(schema), *app.routes]
    )
    problem = TypeAdapter(ProblemDocument).json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= {**problem.pop("$defs"), ProblemDocument.__name__: problem}
    return document


def problems(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Error answers in the form that routes take them."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}}}
    return {status: {"description": text, "content": content} for status, text in statuses.items()}


def _documented(schema: Schema | None) -> list[APIRoute]:
    """Routes that are never called: they say in FastAPI's terms what the two plain routes take and answer."""

    def predict(body: Any) -> None: ...

    def feedback(body: Any) -> None: ...

    takes = (schema.predict_request, schema.feedback_request) if schema else (dict[str, Any], dict[str, Any])
    example: Any = {"examples": [{"instances": [schema.example]}]} if schema else {}
    predict.__annotations__ = {"body": Annotated[takes[0], Body(**example)]}
    feedback.__annotations__ = {"body": Annotated[takes[1], Body()]}
    errors = ANY_ERRORS | _BODY_ERRORS | UNAVAILABLE
    return [
        APIRoute(
            "/predict",
            predict,
            methods=["POST"],
            summary="Predict one or many instances",
            response_model=Answers,
            responses=problems(errors),
            dependencies=KEYS,
        ),
        APIRoute(
            "/feedback",
            feedback,
            methods=["POST"],
            summary="Say what turned out",
            response_model=Accepted,
            responses=problems(errors | _FEEDBACK_ERRORS),
            dependencies=KEYS,
        ),
    ]
