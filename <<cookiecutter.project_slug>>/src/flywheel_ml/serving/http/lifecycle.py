"""The lifecycle of a request: begin → authorise → admit → answer → finish.

The fast path (process/protocol.py) and ASGI (middleware.py and api/routes.py) go through the same steps, in this order.
The route decodes, scores, logs and encodes between admit and finish; see prediction/.
"""

import re
import time
from collections.abc import Iterable
from typing import NamedTuple

import structlog
from starlette.routing import compile_path

from flywheel_ml.serving.auth.guard import Guard
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.http.admission import Admission
from flywheel_ml.serving.observability.logs import AccessLog, describe_error
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.tracing import Headers, RequestContext, Spans, build_context

METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
UNLOGGED_PATHS = frozenset({"/healthz", "/readyz", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Polled by machines every few seconds; successful requests to them are not in the access log."""
CLIENT_LEFT = 499
"""Status in logs and metrics for a client that disconnected before the response (nginx's convention)."""


class Exchange(NamedTuple):
    """A request in progress: its context, method, path and start time (`time.perf_counter`)."""

    context: RequestContext
    method: str
    path: str
    started: float


class RequestLifecycle:
    """Takes every request through its steps.

    Args:
        guard: checks keys, scopes and rates.
        admission: limits concurrent requests.
        metrics: counts requests.
        log: receives unexpected errors.
        spans: creates a span for each request.
    """

    def __init__(
        self,
        guard: Guard,
        admission: Admission,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        spans: Spans | None = None,
    ) -> None:
        self.guard = guard
        self.admission = admission
        self.authorise = guard.authorise
        """Raises `Problem` 401, 403 or 429 unless the request's key allows the request."""
        self.admit = admission.hold_slot
        """Holds a slot for a request in progress; entering raises `Problem` 503 if all are taken."""
        self._metrics = metrics
        self._log = log
        self._spans = spans
        self._access_log = AccessLog()
        self._routes: frozenset[str] = frozenset()
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self._in_flight = 0
        metrics.http.in_flight.set_function(lambda: self._in_flight)

    def set_routes(self, routes: Iterable[str]) -> None:
        """Set the paths that metrics and logs distinguish; all others count as `other`."""
        self._routes = frozenset(routes)
        self._patterns = [(compile_path(route)[0], route) for route in sorted(self._routes) if "{" in route]

    def begin(self, headers: Headers, method: str, path: str, new_id: str = "") -> Exchange:
        """Begin a request; `new_id` is its id if the client sends none."""
        started = time.perf_counter()
        self._in_flight += 1
        spans = None if path in UNLOGGED_PATHS else self._spans
        return Exchange(build_context(headers, spans, new_id), method, path, started)

    def log_unexpected(self, error: Exception, context: RequestContext) -> Problem:
        """Log an unexpected error; returns the problem for the caller."""
        self._log.error("unexpected", **context.fields, **describe_error(error))
        return Problem(
            500, "internal-error", "an unexpected error occurred; look for the request id in the server's log"
        )

    def finish(self, exchange: Exchange, status: int) -> None:
        """Log and count a request that was answered, or whose client disconnected."""
        seconds = time.perf_counter() - exchange.started
        self._in_flight -= 1
        path = exchange.path
        route = path if path in self._routes else self._match_route(path)
        method = exchange.method if exchange.method in METHODS else "other"
        self._metrics.http.count_request(route, method, status, seconds)
        context, trace = exchange.context, exchange.context.trace
        if route not in UNLOGGED_PATHS or status != 200:
            traced = "" if trace is None else f'"trace_id":"{trace.trace_id}","span_id":"{trace.span_id}",'
            self._access_log.write(
                f'{{"event":"request","level":"info","request_id":"{context.request_id}",{traced}"method":"{method}",'
                f'"route":"{route}","status":{status},"ms":{seconds * 1000:.2f}'
            )
        if trace is not None and trace.span is not None and self._spans is not None:
            self._spans.end(context, route, method, status)

    def _match_route(self, path: str) -> str:
        return next((route for pattern, route in self._patterns if pattern.match(path)), "other")
