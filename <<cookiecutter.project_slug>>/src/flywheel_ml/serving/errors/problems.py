"""Every error leaves as an RFC 9457 problem document: never a trace, a path or a key."""

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
    """One reason for a 422."""

    instance: int | None
    field: str | None
    value: Any = None
    rule: str


class ProblemDocument(BaseModel):
    """What an error answer looks like."""

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
    """An answer other than success.

    Args:
        status: HTTP status code.
        kind: the last part of the problem's type, stable for programs.
        detail: one sentence for people.
        headers: extra response headers.
        extra: members beyond those of every problem, `errors` or `ids`.
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

    def response(self, path: str, request_id: str) -> Response:
        """The problem as it goes out."""
        document = {
            "type": f"urn:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": shortened(self.detail),
            "instance": shortened(path),
            "request_id": request_id,
            # Where clients of the Open Inference Protocol look.
            **({"error": shortened(self.detail)} if path.startswith("/v2") else {}),
            **self.extra,
        }
        return Response(to_json(document), self.status, self.headers, MEDIA_TYPE)


async def on_problem(request: Request, error: Exception) -> Response:
    """Answers a `Problem` raised by an endpoint."""
    assert isinstance(error, Problem)
    return error.response(request.scope["path"], request.state.request_id)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answers what the framework itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    path = shortened(request.scope["path"])  # `request.url` would be made of the header `Host`, which may be anything.
    kind, detail = {
        404: ("not-found", f"there is nothing at '{path}'; see /docs"),
        405: ("method-not-allowed", f"'{path}' does not take {request.method}; see /docs"),
    }.get(error.status_code, ("http-error", str(error.detail)))
    headers = dict(error.headers or {})
    if "GET" in (methods := headers.get("Allow", "").split(", ")):
        headers["Allow"] = ", ".join(sorted({*methods, "HEAD"}))
    return Problem(error.status_code, kind, detail, headers).response(path, request.state.request_id)


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters of a text, the cut marked."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
