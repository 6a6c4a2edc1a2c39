"""The lifecycle of a request: begin → authorise → admit → answer → finish.

The fast path (process/protocol.py) and ASGI (middleware.py and api/routes.py) go through the same steps, in this order.
What answers in between decodes, scores, logs and encodes; see prediction/.
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
from flywheel_ml.serving.observability.logs import AccessLog, explained
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.tracing import Headers, RequestContext, Spans, context_of

METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
QUIET = frozenset({"/healthz", "/readyz", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines; not worth a line when all is well."""
CLIENT_LEFT = 499
"""Logged and counted for a client that hung up before its answer (nginx's convention)."""


class Exchange(NamedTuple):
    """A request under way: by what it is known, what it asks for, and when it began (`time.perf_counter`)."""

    context: RequestContext
    method: str
    path: str
    started: float


class RequestLifecycle:
    """Takes every request through its steps.

    Args:
        guard: who may ask what, and how often.
        admission: how much is worked on at once.
        metrics: where requests are counted.
        log: where what goes wrong is written.
        spans: where each request becomes a span.
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
        """Raises `Problem` 401, 403 or 429 unless the request's key may ask this."""
        self.admit = admission.place
        """Holds a place among the requests in progress; entering raises `Problem` 503 if there is none."""
        self._metrics = metrics
        self._log = log
        self._spans = spans
        self._access_log = AccessLog()
        self._routes: frozenset[str] = frozenset()
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self._in_flight = 0
        metrics.http.in_flight.set_function(lambda: self._in_flight)

    def know_routes(self, routes: Iterable[str]) -> None:
        """Tell apart these paths in metrics and logs; all others count as one."""
        self._routes = frozenset(routes)
        self._patterns = [(compile_path(route)[0], route) for route in sorted(self._routes) if "{" in route]

    def begin(self, headers: Headers, method: str, path: str, new_id: str = "") -> Exchange:
        """A request came; `new_id` is its id if it brings none."""
        started = time.perf_counter()
        self._in_flight += 1
        spans = None if path in QUIET else self._spans
        return Exchange(context_of(headers, spans, new_id), method, path, started)

    def unexpected(self, error: Exception, context: RequestContext) -> Problem:
        """Log an error that nobody foresaw; returns what the caller is told."""
        self._log.error("unexpected", **context.fields, **explained(error))
        return Problem(500, "internal-error", "something went wrong here; the log has it under the request id")

    def finish(self, exchange: Exchange, status: int) -> None:
        """The request was answered, or its client left."""
        seconds = time.perf_counter() - exchange.started
        self._in_flight -= 1
        path = exchange.path
        route = path if path in self._routes else self._pattern(path)
        method = exchange.method if exchange.method in METHODS else "other"
        self._metrics.http.request(route, method, status, seconds)
        context, trace = exchange.context, exchange.context.trace
        if route not in QUIET or status != 200:
            traced = "" if trace is None else f'"trace_id":"{trace.trace_id}","span_id":"{trace.span_id}",'
            self._access_log.write(
                f'{{"event":"request","level":"info","request_id":"{context.request_id}",{traced}"method":"{method}",'
                f'"route":"{route}","status":{status},"ms":{seconds * 1000:.2f}'
            )
        if trace is not None and trace.span is not None and self._spans is not None:
            self._spans.end(context, route, method, status)

    def _pattern(self, path: str) -> str:
        return next((route for pattern, route in self._patterns if pattern.match(path)), "other")
