"""What the server tells of itself: metrics for Prometheus, and JSON log lines on stderr."""

import asyncio
import logging
import re
import secrets
import sys
import time
import traceback
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import Problem

if TYPE_CHECKING:
    from .trial import Trial

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
MOST_NAMES = 100
"""Keys that have a series of their own."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
LINE_SECONDS = 0.05
"""How long an access line may wait for others."""
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
QUIET = frozenset({"/healthz", "/readyz", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines; not worth a line when all is well."""
CLIENT_LEFT = 499
"""Logged and counted for a client that hung up before its answer (nginx's convention)."""


class Metrics:
    """The series of one server process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "http_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "http_request_seconds", "Time to answer, by route.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self._answered: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self.in_flight = Gauge("http_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.turned_away = Counter(
            "http_requests_turned_away", "Requests refused for want of room.", registry=self.registry
        )
        self.keys_refused = Counter("api_keys_refused", "Files of keys that were turned down.", registry=self.registry)
        self._limited = Counter(
            "http_requests_rate_limited", "Requests that a key sent too many.", ["key"], registry=self.registry
        )
        self._limited_names: set[str] = set()
        self.batches = Counter("prediction_batches", "Calls of the model.", registry=self.registry)
        self._predictions = Counter(
            "predictions", "Acknowledged predictions.", ["version", "variant", "prediction"], registry=self.registry
        )
        self.degraded = Counter("predictions_degraded", "Predictions not made by the champion.", registry=self.registry)
        self.replaced = Counter(
            "challenger_rows_replaced", "A challenger's rows that others answered.", ["reason"], registry=self.registry
        )
        self.dropped = Counter("shadow_rows_dropped", "Rows that the shadow did not log.", registry=self.registry)
        self._trials = Gauge(
            "trial_running", "0 for a paused challenger or shadow.", ["version", "variant"], registry=self.registry
        )
        self._paused = Counter("trials_paused", "Breakers that opened.", ["variant"], registry=self.registry)
        self.labels = Counter("labels_accepted", "Labels acknowledged.", registry=self.registry)
        self.queued = Gauge("prediction_queue", "Requests waiting to be scored or committed.", registry=self.registry)
        self.log_seconds = Histogram(
            "prediction_log_commit_seconds",
            "Time of a commit, from handing its rows over.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.log_failures = Counter("prediction_log_failures", "Commits that failed.", registry=self.registry)
        self.refused = Counter("bundle_refused", "Bundles or routings that were turned down.", registry=self.registry)
        self.reloads = Counter("bundle_loaded", "Bundles taken into service.", registry=self.registry)
        self._model = Gauge(
            "model_info",
            "1 for the model that answers.",
            ["name", "version", "digest", "variant"],
            registry=self.registry,
        )
        self._worker = Gauge(
            "worker_info", "Which worker this scrape came from.", ["worker", "workers"], registry=self.registry
        )

    def worker(self, number: int, workers: int) -> None:
        """Say which of how many processes these series belong to."""
        self._worker.labels(str(number), str(workers)).set(1)

    def model(self, name: str, version: str, digest: str, variant: str) -> None:
        """Say which model answers now."""
        self._model.clear()
        self._model.labels(name, version, digest, variant).set(1)

    def no_model(self) -> None:
        """Say that none does."""
        self._model.clear()

    def trials(self, found: "Sequence[Trial]") -> None:
        """Say which models stand beside the one that answers."""
        self._trials.clear()
        for trial in found:
            self._trials.labels(trial.live.ref.version, trial.live.variant).set(0 if trial.paused else 1)

    def paused(self, trial: "Trial") -> None:
        """Count a breaker that opened."""
        self._paused.labels(trial.live.variant).inc()
        self._trials.labels(trial.live.ref.version, trial.live.variant).set(0)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        series = (route, method, status)
        if series not in self._answered:
            # Looking a series up costs more than counting in it.
            counter = self._requests.labels(route, method, str(status))
            self._answered[series] = (counter.inc, self._seconds.labels(route).observe)
        count, observe = self._answered[series]
        count()
        observe(seconds)

    def rate_limited(self, name: str) -> None:
        """Count a request too many; `name` is a key's, and those beyond the first `MOST_NAMES` count as one."""
        if name not in self._limited_names and len(self._limited_names) >= MOST_NAMES:
            name = "other"
        self._limited_names.add(name)
        self._limited.labels(name).inc()

    def predicted(self, version: str, variant: str, names: Sequence[str], degraded: bool) -> None:
        """Count acknowledged predictions; `names` has the predicted class of each."""
        for name, count in Tally(names).items():
            self._predictions.labels(version, variant, name).inc(count)
        if degraded:
            self.degraded.inc(len(names))


class Telemetry:
    """ASGI middleware around everything: request id, count, log line, and an answer for what nobody caught.

    Args:
        app: what it wraps.
        metrics: where requests are counted.
        log: where what goes wrong is written.
        routes: known paths; others are counted as one.
        hot: routes for POST that are reached from here, past all that lies between.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        routes: frozenset[str],
        hot: Mapping[str, ASGIApp],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log
        self._lines = Lines()
        self._routes = routes
        self._templates = [(compile_path(route)[0], route) for route in sorted(routes) if "{" in route]
        self._hot = hot
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        self.enter()
        try:
            hot = self._hot.get(scope["path"]) if scope["method"] == "POST" else None
            await (hot or self._app)(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            problem = self.unexpected(error, request_id)
            if not status:
                await problem.response(scope["path"], request_id)(scope, receive, send_with_id)
        finally:
            self.leave(scope["path"], scope["method"], request_id, status, started)

    def _template(self, path: str) -> str:
        return next((route for pattern, route in self._templates if pattern.match(path)), "other")

    def unexpected(self, error: Exception, request_id: str) -> Problem:
        """Write down what nobody foresaw; what the caller is told of it."""
        self._log.error("unexpected", request_id=request_id, **explained(error))
        return Problem(500, "internal-error", "something went wrong here; the log has it under the request id")

    def enter(self) -> None:
        """A request came."""
        self._in_flight += 1

    def leave(self, path: str, method: str, request_id: str, status: int, started: float) -> None:
        """It was answered; `started` is `time.perf_counter` when it came."""
        seconds = time.perf_counter() - started
        self._in_flight -= 1
        route = path if path in self._routes else self._template(path)
        method = method if method in METHODS else "other"
        self._metrics.request(route, method, status, seconds)
        if route not in QUIET or status != 200:
            self._lines.write(
                f'{{"event":"request","level":"info","request_id":"{request_id}","method":"{method}",'
                f'"route":"{route}","status":{status},"ms":{seconds * 1000:.2f}'
            )


class Lines:
    """Access lines: those of a moment go out as one write."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._waiting: list[str] = []

    def write(self, begun: str) -> None:
        """Write a JSON object, given without its end, which is the time."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(LINE_SECONDS, self.flush)
        self._waiting.append(f'{begun},"at":"{datetime.now(UTC).isoformat()}"}}\n')

    def flush(self) -> None:
        """Write what waits."""
        text = "".join(self._waiting)
        self._waiting.clear()
        with suppress(OSError, ValueError):  # Nobody reads it any more: no reason to stop answering.
            self._stream.write(text)
            self._stream.flush()


def logger(stream: TextIO | None = None) -> structlog.typing.FilteringBoundLogger:
    """A logger that writes one JSON object per line."""
    made: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=[*_PROCESSORS, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    return made


def unify_logging() -> None:
    """Give what libraries log through the standard library the same form; called by a process that serves."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_PROCESSORS, _without_trace],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def explained(error: BaseException) -> dict[str, Any]:
    """An error's type and the functions it passed through; its message may hold a caller's data and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "where": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-8:]],
    }


def _without_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    raised = event.pop("exc_info", None)
    if isinstance(raised, tuple) and raised[1] is not None:
        event.update(explained(raised[1]))
    return event


def request_id_of(headers: Iterable[tuple[bytes, bytes]], new: str = "") -> str:
    """The id that a request's sender gave it, if that is a sane one, or a new one, which may be given."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return new or secrets.token_hex(16)


_PROCESSORS: list[Any] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
]
