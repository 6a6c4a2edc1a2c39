"""What the server records of each request: metrics, a span and a line of the access log."""

import time
from collections.abc import Mapping

import structlog
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.logs import AccessLog, explained
from flywheel_ml.serving.observability.series import Metrics
from flywheel_ml.serving.observability.tracing import Headers, Origin, Spans, origin_of

METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
QUIET = frozenset({"/healthz", "/readyz", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines; not worth a line when all is well."""
CLIENT_LEFT = 499
"""Logged and counted for a client that hung up before its answer (nginx's convention)."""


class Telemetry:
    """ASGI middleware around everything: request id, count, log line, and an answer for what nobody caught.

    Args:
        app: what it wraps.
        metrics: where requests are counted.
        log: where what goes wrong is written.
        routes: known paths; others are counted as one.
        hot: routes for POST that are reached from here, past all that lies between.
        root_path: what a proxy may leave before the paths.
        spans: where each request becomes a span.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        routes: frozenset[str],
        hot: Mapping[str, ASGIApp],
        spans: Spans | None = None,
        root_path: str = "",
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log
        self._access_log = AccessLog()
        self._routes = routes
        self._templates = [(compile_path(route)[0], route) for route in sorted(routes) if "{" in route]
        self._hot = hot
        self._spans = spans
        self._prefix = f"{root_path}/"
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method, path = scope["method"], self._route_path(scope["path"])
        if method == "HEAD" or path != scope["path"]:
            scope = {**scope, "method": "GET" if method == "HEAD" else method, "path": path}
        origin = self.origin(scope["headers"], path)
        request_id = origin.request_id
        scope.setdefault("state", {}).update(request_id=request_id, origin=origin)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        self.enter()
        try:
            hot = self._hot.get(path) if method == "POST" else None
            await (hot or self._app)(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            problem = self.unexpected(error, origin)
            if not status:
                await problem.response(path, request_id)(scope, receive, send_with_id)
        finally:
            self.leave(path, method, origin, status, started)

    def _route_path(self, path: str) -> str:
        """The path as routes know it: without the prefix of a proxy, and without a slash at its end."""
        if len(self._prefix) > 1 and path.startswith(self._prefix):
            path = path[len(self._prefix) - 1 :]
        return path[:-1] if path.endswith("/") and len(path) > 1 else path

    def _template(self, path: str) -> str:
        return next((route for pattern, route in self._templates if pattern.match(path)), "other")

    def origin(self, headers: Headers, path: str, new_id: str = "") -> Origin:
        """By what a request is known, see `origin_of`; what machines ask every few seconds is no span."""
        return origin_of(headers, None if path in QUIET else self._spans, new_id)

    def unexpected(self, error: Exception, origin: Origin) -> Problem:
        """Write down what nobody foresaw; what the caller is told of it."""
        self._log.error("unexpected", **origin.fields, **explained(error))
        return Problem(500, "internal-error", "something went wrong here; the log has it under the request id")

    def enter(self) -> None:
        """A request came."""
        self._in_flight += 1

    def leave(self, path: str, method: str, origin: Origin, status: int, started: float) -> None:
        """It was answered; `started` is `time.perf_counter` when it came."""
        seconds = time.perf_counter() - started
        self._in_flight -= 1
        route = path if path in self._routes else self._template(path)
        method = method if method in METHODS else "other"
        self._metrics.request(route, method, status, seconds)
        trace = origin.trace
        if route not in QUIET or status != 200:
            traced = "" if trace is None else f'"trace_id":"{trace.trace_id}","span_id":"{trace.span_id}",'
            self._access_log.write(
                f'{{"event":"request","level":"info","request_id":"{origin.request_id}",{traced}"method":"{method}",'
                f'"route":"{route}","status":{status},"ms":{seconds * 1000:.2f}'
            )
        if trace is not None and trace.span is not None and self._spans is not None:
            self._spans.end(origin, route, method, status)
