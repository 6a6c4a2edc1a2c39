"""Trace context is propagated, and spans reach a real collector."""

import gzip
import io
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.phases import PHASES
from flywheel_ml.serving.observability.tracing import FLUSH_SECONDS, Spans, is_configured, parse_parent
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ConfigError
from library.helpers import faulty_models
from library.helpers.servers import Server, wait_for
from library.serving.observability.test_metrics import parse_metrics, value

Instance = dict[str, Any]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "header",
    [
        SENT,
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-ff",
        f"01-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-what-next",
    ],
)
def test_a_valid_traceparent_is_read(header: str) -> None:
    found = parse_parent(
        [(b"host", b"x"), (b"traceparent", header.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    )
    assert found is not None
    assert (found.trace_id, found.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert found.trace_flags == int(header[53:55], 16)
    assert found.trace_state.to_header() == "a=1,b=2"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        SENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"01-{TRACE}-{SPAN}-01.what",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f" {SENT}",
        f"{SENT}\n",
    ],
)
def test_malformed_traceparent_is_ignored(header: str) -> None:
    assert parse_parent([(b"traceparent", header.encode())]) is None


def test_repeated_traceparent_is_ignored() -> None:
    assert parse_parent([(b"traceparent", SENT.encode())] * 2) is None


def test_malformed_tracestate_does_not_change_the_trace() -> None:
    for state in (b"no-pair", b"secret=" + b"x" * 10_000):
        found = parse_parent([(b"traceparent", SENT.encode()), (b"tracestate", state)])
        assert found is not None
        assert (found.trace_id, len(found.trace_state)) == (int(TRACE, 16), 0)


def lines_of(server: Server, request_id: str) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]]:
        return [line for line in server.log_lines() if line.get("request_id") == request_id]

    wait_for(lambda: any(line["event"] == "request" for line in found()))
    return found()


# The fast path, the ASGI path, and rejected requests.
@pytest.mark.parametrize(("chunked", "status"), [(False, 200), (True, 200), (False, 422)])
def test_traced_request_has_its_trace_id_in_the_log(
    server: Server, example: Instance, chunked: bool, status: int
) -> None:
    content = json.dumps({"instances": [example if status == 200 else {}]}).encode()
    seen = []
    for _ in range(2):
        with server.client() as client:
            answer = client.post(
                "/predict",
                content=iter([content]) if chunked else content,
                headers={"Content-Type": "application/json", "traceparent": SENT},
            )
        assert answer.status_code == status
        assert "traceparent" not in answer.headers
        (line,) = lines_of(server, answer.headers["x-request-id"])
        assert (line["event"], line["trace_id"]) == ("request", TRACE)
        seen.append(line["span_id"])
    assert len({*seen, SPAN}) == 3
    with server.client() as client:
        untraced = client.post("/predict", json={"instances": [example]}, headers={"traceparent": "garbage"})
    assert "trace_id" not in lines_of(server, untraced.headers["x-request-id"])[0]


def test_malformed_trace_context_is_not_logged(server: Server, client: httpx.Client) -> None:
    for parent, state in ((SENT, "secret"), (SENT, "secret=1,secret=2"), (f"01{SENT[2:]}-{'secret' * 100}", "")):
        answer = client.get("/model", headers={"traceparent": parent, "tracestate": state})
        (line,) = lines_of(server, answer.headers["x-request-id"])
        assert ("trace_id" in line) == (parent is SENT)
    assert "secret" not in server.errors.read_text()
    assert not any("traceparent" in line["event"] for line in server.log_lines())


def test_every_log_line_about_a_request_has_its_id(
    folder: ServingFolder, tmp_path: Path, example: Instance, bundle_path: Path
) -> None:
    folder.roll_out("1", model=faulty_models.build_model(Bundle.open(bundle_path), "raised"))
    with Server(tmp_path) as server, server.client(headers={"traceparent": SENT}) as client:

        def ask(rows: int, chunked: bool = False) -> httpx.Response:
            content = json.dumps({"instances": [example] * rows}).encode()
            kind = {"Content-Type": "application/json"}
            return client.post("/predict", content=iter([content]) if chunked else content, headers=kind)

        rescued = [ask(faulty_models.SAFE_ROWS + 1), ask(faulty_models.SAFE_ROWS + 1, chunked=True), ask(200)]
        known = rescued[0].json()["predictions"][0]["id"]
        with sqlite3.connect(Path(server.log) / "serve-0.db") as other:
            other.execute("ALTER TABLE predictions RENAME TO gone")
            other.execute("ALTER TABLE labels RENAME TO gone_too")
        other.close()
        label = {"labels": [{"id": known, "label": True}]}
        unlogged = [ask(1), ask(1, chunked=True), ask(200), client.post("/feedback", json=label)]
        for answers, status, event in (
            (rescued, 200, "the model failed, the class prior answers: "),
            (unlogged, 503, "request"),  # The reason is logged once, when the log fails.
        ):
            for answer in answers:
                assert answer.status_code == status
                lines = lines_of(server, answer.headers["x-request-id"])
                assert any(line["event"].startswith(event) for line in lines)
                assert all(line["trace_id"] == TRACE and line["span_id"] == lines[0]["span_id"] for line in lines)
        about = ("the model failed", "prediction log", "request", "unexpected")
        assert all("request_id" in line for line in server.log_lines() if line["event"].startswith(about))


class Collector:
    """An OTLP/HTTP receiver on a free port; what it was sent, span by span."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                if collector.status == 200:
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, sent: ExportTraceServiceRequest) -> None:
        for batch in sent.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in batch.resource.attributes})
            self.spans += [span for scope in batch.scope_spans for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_each_request_is_exported_as_a_span(
    folder: ServingFolder, tmp_path: Path, example: Instance, collector: Collector
) -> None:
    folder.roll_out("1")
    named = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "delays",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # Nothing is reported twice.
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with Server(tmp_path, **named) as server, server.client() as client:
        body = {"instances": [example]}
        given = {"traceparent": SENT, "tracestate": "vendor=kept"}
        first = client.post("/predict", json=body, headers=given)
        large = client.post("/predict", json={"instances": [example] * 200}, headers=given)
        refused = client.post("/predict", json={"instances": [{}]})
        unsampled = client.post("/predict", json=body, headers={"traceparent": SENT[:-2] + "00"})
        strange = client.get("/secret/of/a/caller")
        assert client.get("/healthz").status_code == 200
        asked = [first, large, refused, unsampled, strange]
        lines = [lines_of(server, one.headers["x-request-id"])[0] for one in asked]
        wait_for(lambda: len(collector.spans) >= 4)
    assert len(collector.spans) == 4
    spans = {
        attributes(span)["http.response.header.x-request-id"].values[0].string_value: span for span in collector.spans
    }
    told = [one.headers["x-request-id"] for one in asked]
    assert spans.keys() == set(told) - {told[3]}  # Whoever sent it decided that its trace is not kept.
    assert {one["service.name"] for one in collector.resources} == {"delays"}
    span, large_span = spans[told[0]], spans[told[1]]
    assert (span.name, span.kind) == ("POST /predict", span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert span.trace_state == "vendor=kept"
    found = attributes(span)
    assert found["http.request.method"] == "POST"
    assert (found["http.route"], found["url.path"], found["http.response.status_code"]) == ("/predict", "/predict", 200)
    for one in (span, large_span):
        phases = [attributes(one)[f"prediction.{phase}_seconds"] for phase in PHASES if phase != "respond"]
        assert 0 < sum(phases) < (one.end_time_unix_nano - one.start_time_unix_nano) / 1e9
    # The log says the same, whether a trace is kept or not.
    for line, name in zip(lines, told, strict=True):
        if name in spans:
            assert (line["trace_id"], line["span_id"]) == (spans[name].trace_id.hex(), spans[name].span_id.hex())
    assert lines[3]["trace_id"] == TRACE
    own = spans[told[2]]
    assert not own.parent_span_id
    assert attributes(own)["http.response.status_code"] == 422
    assert "secret" not in str(spans[told[4]])


def test_unavailable_collector_is_logged_once(
    folder: ServingFolder, tmp_path: Path, example: Instance, collector: Collector
) -> None:
    folder.roll_out("1")
    collector.status = 400  # One that is not worth asking again.
    named = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces", "OTEL_BSP_SCHEDULE_DELAY": "20"}
    with Server(tmp_path, **named) as server, server.client() as client:

        def ask() -> int:
            return client.post("/predict", json={"instances": [example]}).status_code

        def events(name: str) -> list[dict[str, Any]]:
            return [line for line in server.log_lines() if line["event"] == name]

        def lost() -> float:
            assert ask() == 200
            return value(parse_metrics(client.get("/metrics").text), "trace_spans_dropped_total")

        wait_for(lambda: lost() > 5)
        (line,) = events("traces_rejected")
        assert (line["level"], collector.spans) == ("warning", [])
        assert collector.url not in json.dumps(server.log_lines())
        collector.status = 200
        wait_for(lambda: ask() == 200 and bool(events("traces_accepted")))
        assert len(events("traces_rejected")) == 1
        assert collector.spans


def test_missing_collector_does_not_delay_the_stop(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    queue = {"OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
    with (
        Server(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **queue) as server,
        server.client() as client,
    ):
        for _ in range(40):
            assert client.post("/predict", json={"instances": [example]}).status_code == 200
        # All that neither waits nor is being sent.
        assert value(parse_metrics(client.get("/metrics").text), "trace_spans_dropped_total") >= 40 - 10 - 5
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < FLUSH_SECONDS + 5
        assert all(line["level"] in {"info", "warning"} for line in server.log_lines())
        assert sum(line["event"] == "traces_rejected" for line in server.log_lines()) <= 1


def test_traces_are_off_unless_a_collector_is_named() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert is_configured(endpoint)
    assert is_configured({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"})
    for off in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {**endpoint, "OTEL_SDK_DISABLED": "true"}):
        assert not is_configured(off)
    assert not is_configured({**endpoint, "OTEL_TRACES_EXPORTER": "none"})
    with pytest.raises(ConfigError, match="unsupported protocol 'grpc'; use http/protobuf"):
        is_configured({**endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_contradicting_variables_are_reported_in_one_line() -> None:
    queue = {"OTEL_BSP_MAX_QUEUE_SIZE": "3"}
    with pytest.raises(ConfigError, match=r"OpenTelemetry's variables: .*max_queue_size.*; correct them"):
        Spans(Metrics(), logger(io.StringIO()), queue)


def test_missing_extra_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match="install the extra 'otel', or unset the variable"):
        is_configured({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
