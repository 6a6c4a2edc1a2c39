"""Traces: the W3C trace context of a request, and a span for each request if a collector is configured.

A request with a valid `traceparent` gets a span id, and its trace id is in every log line about it. If the environment
sets `OTEL_EXPORTER_OTLP_ENDPOINT`, every request becomes an OpenTelemetry span. It is sampled as the standard variables
say, and a separate thread exports it. Otherwise OpenTelemetry's SDK is not loaded.
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
"""Maximum queued spans if OTEL_BSP_MAX_QUEUE_SIZE is not set; OpenTelemetry's own default."""
FLUSH_SECONDS = 3.0
"""How long a stopping server tries to export its last spans."""

Headers = Iterable[tuple[bytes, bytes]]


class Trace:
    """The trace and span of one request.

    Args:
        trace_id: 32 hex digits, from the sender.
        span_id: 16 hex digits, of this request.
        span: the OpenTelemetry span, if there is one.
    """

    __slots__ = ("phases", "span", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, span: Any = None) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.span = span
        self.phases: Mapping[str, float] = {}
        """Seconds of each phase of its batch, set after scoring."""


class RequestContext(NamedTuple):
    """The ids that identify a request in log lines."""

    request_id: str
    trace: Trace | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The fields that every log line about the request has."""
        if self.trace is None:
            return {"request_id": self.request_id}
        return {"request_id": self.request_id, "trace_id": self.trace.trace_id, "span_id": self.trace.span_id}


NO_CONTEXT = RequestContext("")
FIELDS = ("request_id", "trace_id", "span_id")


class _HeaderGetter(Getter[Headers]):
    """Reads ASGI headers for OpenTelemetry."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.encode()
        found = [value.decode("latin-1") for name, value in carrier if name == wanted]
        if key == "traceparent" and (len(found) != 1 or found[0] != found[0].strip()):
            return None  # The standard allows one; OpenTelemetry would accept the first, with trailing whitespace.
        return found or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER = _HeaderGetter()
_PROPAGATOR = TraceContextTextMapPropagator()


def build_context(headers: Headers, spans: "Spans | None" = None, new_id: str = "") -> RequestContext:
    """Return the context of a request: the sender's id if it is valid, else a new one, and its trace, if any.

    Args:
        headers: as ASGI passes them.
        spans: creates a span for each request.
        new_id: id for a request without one; random if empty.
    """
    request_id, is_traced = "", False
    for name, value in headers:
        if name == b"x-request-id":
            if not request_id and REQUEST_ID.fullmatch(value):
                request_id = value.decode()
        elif name == b"traceparent":
            is_traced = True
    parent = parse_parent(headers) if is_traced else None
    trace = None
    if spans is not None:
        trace = spans.begin(parent)
    elif parent is not None:
        trace = Trace(otel.format_trace_id(parent.trace_id), secrets.token_hex(8))
    return RequestContext(request_id or new_id or secrets.token_hex(16), trace)


def parse_parent(headers: Headers) -> otel.SpanContext | None:
    """Parse the sender's span from the headers; None if it is missing or not valid W3C Trace Context.

    OpenTelemetry parses it in 5 µs, and in 8 µs with a `tracestate`.
    """
    found = otel.get_current_span(_PROPAGATOR.extract(headers, getter=_GETTER)).get_span_context()
    return found if found.is_valid else None


def is_configured(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a collector.

    Raises:
        ConfigError: OpenTelemetry is not installed, or the protocol is not supported.
    """
    endpoint = next((name for name in ENDPOINTS if environ.get(name)), None)
    if endpoint is None or "none" in environ.get("OTEL_TRACES_EXPORTER", "") or is_true(environ, "OTEL_SDK_DISABLED"):
        return False
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: unsupported protocol '{protocol}'; use {PROTOCOL}")
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec("opentelemetry.sdk.trace")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            f"{endpoint} is set, but OpenTelemetry is not installed; install the extra 'otel', or unset the variable"
        )
    return True


def is_true(environ: Mapping[str, str], name: str) -> bool:
    """Whether an OpenTelemetry variable is set to true."""
    return environ.get(name, "").strip().lower() == "true"


class Spans:
    """Creates a span for each request, and exports it to the collector in the environment.

    Args:
        metrics: counts spans that the collector rejected, or that did not fit into the queue.
        log: receives the first failed export and the recovery; OpenTelemetry would log each failure.
        environ: has the service's name and the queue's size; OpenTelemetry reads the other variables itself.

    Raises:
        ConfigError: OpenTelemetry rejects one of its variables.
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
            self._exporter = _build_exporter(self._on_exported, metrics, log)
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter, self._room))
        except ValueError as error:
            raise ConfigError(f"OpenTelemetry's variables: {error}; correct them, or unset them") from None
        self._tracer = self._provider.get_tracer(__name__.partition(".")[0])

    def begin(self, parent: otel.SpanContext | None) -> Trace:
        """Begin a span whose parent is the sender's span."""
        context = None if parent is None else otel.set_span_in_context(otel.NonRecordingSpan(parent))
        span = self._tracer.start_span("request", context, otel.SpanKind.SERVER)
        own = span.get_span_context()
        return Trace(otel.format_trace_id(own.trace_id), otel.format_span_id(own.span_id), span)

    def end(self, context: RequestContext, route: str, method: str, status: int) -> None:
        """End a span; attributes follow OpenTelemetry's conventions and contain no data of the request's body."""
        trace = context.trace
        if trace is None or not trace.span.is_recording():
            return
        attributes: dict[str, Any] = {
            "http.request.method": method if method != "other" else "_OTHER",
            "http.response.status_code": status,
            "http.response.header.x-request-id": [context.request_id],
            "url.scheme": "http",
        }
        if route != "other":
            attributes["http.route"] = route
            if "{" not in route:
                attributes["url.path"] = route
        if status >= SERVER_ERROR:
            attributes["error.type"] = str(status)
            trace.span.set_status(otel.StatusCode.ERROR)
        attributes |= {f"prediction.{phase}_seconds": seconds for phase, seconds in trace.phases.items()}
        trace.span.update_name(f"{method} {route}" if route != "other" else method)
        trace.span.set_attributes(attributes)
        with self._turn:
            has_room = self._waiting < self._room
            self._waiting += has_room
        if not has_room:  # The queue drops a span silently.
            self._metrics.http.spans_dropped.inc()
        trace.span.end()

    def _on_exported(self, spans: int) -> None:
        with self._turn:
            self._waiting -= spans

    def close(self) -> None:
        """Export the queued spans within `FLUSH_SECONDS`; blocking."""
        flushing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        if flushing.is_alive():
            self._exporter.shutdown()


def _build_exporter(taken: Callable[[int], None], metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult

    class Exporter(OTLPSpanExporter):
        """Logs once that the collector rejects spans, and once that it accepts them again."""

        _is_failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            taken(len(spans))
            result = super().export(spans)
            has_failed = result is not SpanExportResult.SUCCESS
            if has_failed:
                metrics.http.spans_dropped.inc(len(spans))
            if has_failed != self._is_failing:
                self._is_failing = has_failed
                if has_failed:
                    log.warning(
                        "traces_rejected", reason="the collector does not accept spans; requests are still answered"
                    )
                else:
                    log.info("traces_accepted")
            return result

    return Exporter()
