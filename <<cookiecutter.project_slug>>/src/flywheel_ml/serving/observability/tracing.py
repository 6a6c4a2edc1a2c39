"""Traces: the W3C context that a request came with, and a span of each request where a collector asks for them.

A request with a valid `traceparent` has its trace's id in every log line that is about it; a span of its own is made
for it. With `OTEL_EXPORTER_OTLP_ENDPOINT` in the environment every request is a span of OpenTelemetry's, sampled and
sent as its standard variables say, by a thread of its own. Without, OpenTelemetry's SDK is not even loaded.
"""

import re
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import structlog
from opentelemetry import trace as otel
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.utils.errors import ConfigError

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
SERVER_ERROR = 500
QUEUE = 2048
"""Most spans that wait, where OTEL_BSP_MAX_QUEUE_SIZE says nothing: OpenTelemetry's own default."""
FLUSH_SECONDS = 3.0
"""How long a stopping server tries to get rid of its last spans."""

Headers = Iterable[tuple[bytes, bytes]]


class Trace:
    """One request's place in a trace.

    Args:
        trace_id: 32 hex digits, its sender's.
        span_id: 16 hex digits, this request's own.
        span: OpenTelemetry's, where there is one.
    """

    __slots__ = ("phases", "span", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, span: Any = None) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.span = span
        self.phases: Mapping[str, float] = {}
        """Seconds of each phase of its batch, once it was scored."""


class RequestContext(NamedTuple):
    """By what a request is known in log lines."""

    request_id: str
    trace: Trace | None = None

    @property
    def fields(self) -> dict[str, str]:
        """What every line about the request says."""
        if self.trace is None:
            return {"request_id": self.request_id}
        return {"request_id": self.request_id, "trace_id": self.trace.trace_id, "span_id": self.trace.span_id}


NO_REQUEST = RequestContext("")
FIELDS = ("request_id", "trace_id", "span_id")


class _HeaderGetter(Getter[Headers]):
    """Reads headers for OpenTelemetry, as ASGI has them."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.encode()
        found = [value.decode("latin-1") for name, value in carrier if name == wanted]
        if key == "traceparent" and (len(found) != 1 or found[0] != found[0].strip()):
            return None  # The standard allows one; OpenTelemetry would take the first, and a line's end after it.
        return found or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER = _HeaderGetter()
_PROPAGATOR = TraceContextTextMapPropagator()


def context_of(headers: Headers, spans: "Spans | None" = None, new_id: str = "") -> RequestContext:
    """The id that a request's sender gave it, if that is a sane one, or a new one; and its trace, if it has one.

    Args:
        headers: as ASGI gives them.
        spans: where each request becomes a span.
        new_id: the id of a request without one; drawn if not given.
    """
    request_id, is_traced = "", False
    for name, value in headers:
        if name == b"x-request-id":
            if not request_id and REQUEST_ID.fullmatch(value):
                request_id = value.decode()
        elif name == b"traceparent":
            is_traced = True
    parent = parent_of(headers) if is_traced else None
    trace = None
    if spans is not None:
        trace = spans.begin(parent)
    elif parent is not None:
        trace = Trace(otel.format_trace_id(parent.trace_id), secrets.token_hex(8))
    return RequestContext(request_id or new_id or secrets.token_hex(16), trace)


def parent_of(headers: Headers) -> otel.SpanContext | None:
    """The span that a request was sent from; None if it does not say, or not as W3C Trace Context has it.

    OpenTelemetry reads it in 5 µs, and in 8 with a `tracestate`.
    """
    found = otel.get_current_span(_PROPAGATOR.extract(headers, getter=_GETTER)).get_span_context()
    return found if found.is_valid else None


def is_configured(environ: Mapping[str, str]) -> bool:
    """Whether a collector is named that spans go to.

    Raises:
        ConfigError: it is, and cannot be served: OpenTelemetry is not installed, or another protocol is asked for.
    """
    named = next((name for name in ENDPOINTS if environ.get(name)), None)
    if named is None or "none" in environ.get("OTEL_TRACES_EXPORTER", "") or is_true(environ, "OTEL_SDK_DISABLED"):
        return False
    asked = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if asked != PROTOCOL:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: '{asked}' is not spoken here; use {PROTOCOL}")
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec("opentelemetry.sdk.trace")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            f"{named} is set, but OpenTelemetry is not installed; install the extra 'otel', or unset the variable"
        )
    return True


def is_true(environ: Mapping[str, str], name: str) -> bool:
    """Whether a variable of OpenTelemetry's is set to true."""
    return environ.get(name, "").strip().lower() == "true"


class Spans:
    """Makes a span of each request, for the collector that the environment names.

    Args:
        metrics: where spans are counted that it did not take, or that did not fit the queue.
        log: where the first failure is told, and its end; OpenTelemetry would tell each.
        environ: tells the service's name and the queue's size; its libraries read the rest there themselves.

    Raises:
        ConfigError: OpenTelemetry does not take what it reads there.
    """

    def __init__(
        self, metrics: Metrics, log: structlog.typing.FilteringBoundLogger, environ: Mapping[str, str]
    ) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        has_name = environ.get("OTEL_SERVICE_NAME") or f"{SERVICE_NAME}=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({} if has_name else {SERVICE_NAME: __name__.partition(".")[0]})
        self._metrics = metrics
        self._waiting = 0
        self._turn = threading.Lock()
        try:
            self._room = int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or QUEUE)
            self._exporter = _exporter(self._taken, metrics, log)
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter, self._room))
        except ValueError as error:
            raise ConfigError(f"OpenTelemetry's variables: {error}; correct them, or unset them") from None
        self._tracer = self._provider.get_tracer(__name__.partition(".")[0])

    def begin(self, parent: otel.SpanContext | None) -> Trace:
        """A request came, from there."""
        context = None if parent is None else otel.set_span_in_context(otel.NonRecordingSpan(parent))
        span = self._tracer.start_span("request", context, otel.SpanKind.SERVER)
        own = span.get_span_context()
        return Trace(otel.format_trace_id(own.trace_id), otel.format_span_id(own.span_id), span)

    def end(self, context: RequestContext, route: str, method: str, status: int) -> None:
        """It was answered; attributes are named by OpenTelemetry's conventions, and hold nothing of what it brought."""
        trace = context.trace
        if trace is None or not trace.span.is_recording():
            return
        told: dict[str, Any] = {
            "http.request.method": method if method != "other" else "_OTHER",
            "http.response.status_code": status,
            "http.response.header.x-request-id": [context.request_id],
            "url.scheme": "http",
        }
        if route != "other":
            told["http.route"] = route
            if "{" not in route:
                told["url.path"] = route
        if status >= SERVER_ERROR:
            told["error.type"] = str(status)
            trace.span.set_status(otel.StatusCode.ERROR)
        told |= {f"prediction.{phase}_seconds": seconds for phase, seconds in trace.phases.items()}
        trace.span.update_name(f"{method} {route}" if route != "other" else method)
        trace.span.set_attributes(told)
        with self._turn:
            has_room = self._waiting < self._room
            self._waiting += has_room
        if not has_room:  # The queue drops one in silence.
            self._metrics.http.spans_lost.inc()
        trace.span.end()

    def _taken(self, spans: int) -> None:
        with self._turn:
            self._waiting -= spans

    def close(self) -> None:
        """Send what waits, within `FLUSH_SECONDS`; blocking."""
        flushing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        if flushing.is_alive():
            self._exporter.shutdown()


def _exporter(taken: Callable[[int], None], metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult

    class Exporter(OTLPSpanExporter):
        """Says once that the collector takes nothing, and once that it does again."""

        _is_failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            taken(len(spans))
            result = super().export(spans)
            has_failed = result is not SpanExportResult.SUCCESS
            if has_failed:
                metrics.http.spans_lost.inc(len(spans))
            if has_failed != self._is_failing:
                self._is_failing = has_failed
                if has_failed:
                    log.warning("traces_refused", reason="the collector does not take spans; requests go on")
                else:
                    log.info("traces_accepted")
            return result

    return Exporter()
