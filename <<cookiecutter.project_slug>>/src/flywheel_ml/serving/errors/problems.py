"""RFC 9457 problem documents for every error response; they never contain tracebacks, file paths or keys."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from flywheel_ml.utils.errors import ProjectError

MEDIA_TYPE = "application/problem+json"
MAX_TEXT = 300


class Fault(BaseModel):
    """One validation error of a 422."""

    instance: int | None
    field: str | None
    value: Any = None
    rule: str


class ProblemDocument(BaseModel):
    """The body of an error response."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    error: str | None = None
    errors: list[Fault] | None = None
    ids: list[str] | None = None


class Problem(ProjectError):
    """An error response.

    Args:
        status: HTTP status code.
        kind: last part of the problem's `type`; stable, for programs.
        detail: one sentence, for people.
        headers: extra response headers.
        extra: additional members, `errors` or `ids`.
    """

    def __init__(
        self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def to_response(self, path: str, request_id: str) -> Response:
        """Return the HTTP response."""
        document = {
            "type": f"urn:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": shorten(self.detail),
            "instance": shorten(path),
            "request_id": request_id,
            # Clients of the Open Inference Protocol read this member.
            **({"error": shorten(self.detail)} if path.startswith("/v2") else {}),
            **self.extra,
        }
        return Response(to_json(document), self.status, self.headers, MEDIA_TYPE)


async def on_problem(request: Request, error: Exception) -> Response:
    """Handle a `Problem` that an endpoint raised."""
    assert isinstance(error, Problem)
    return error.to_response(request.scope["path"], request.state.request_id)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handle an error of the framework: an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    path = shorten(request.scope["path"])  # `request.url` uses the `Host` header, which clients control.
    kind, detail = {
        404: ("not-found", f"there is nothing at '{path}'; see /docs"),
        405: ("method-not-allowed", f"'{path}' does not take {request.method}; see /docs"),
    }.get(error.status_code, ("http-error", str(error.detail)))
    headers = dict(error.headers or {})
    if "GET" in (methods := headers.get("Allow", "").split(", ")):
        headers["Allow"] = ", ".join(sorted({*methods, "HEAD"}))
    return Problem(error.status_code, kind, detail, headers).to_response(path, request.state.request_id)


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """Truncate a text to `limit` characters; a truncated text ends in an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
