"""uvicorn's HTTP/1.1 protocol with limits on heads and slow clients, and a fast path for predictions.

A plain prediction request (POST /predict with a small JSON body of declared length, while a model is in service) goes
from the parser directly into the next batch, and from there to the socket. It can be rejected before its body is read.
All other requests take the ASGI path, through the same steps of the same `RequestLifecycle`.
"""

import asyncio
import secrets
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from flywheel_ml.serving.api.routes import Service
from flywheel_ml.serving.codecs.native import NATIVE
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.experiments.assignment import NO_HINTS, RoutingHints
from flywheel_ml.serving.http.lifecycle import CLIENT_LEFT, Exchange
from flywheel_ml.serving.models.served_model import Deployment
from flywheel_ml.serving.prediction.batcher import MAX_INLINE_BODY_BYTES, UNLOGGED_HEADER, UnloggedResponse
from flywheel_ml.serving.prediction.requests import PredictRequest
from flywheel_ml.serving.process.connections import ConnectionLimit

JSON = b"application/json"
UNUSUAL = {b"transfer-encoding", b"content-encoding"}
MAX_PIPELINED = 64
"""Maximum pipelined requests of one connection; each needs some 10 KB until it is answered."""
REFUSAL_SECONDS = 1.0
"""How long a connection beyond the limit stays open for its first request and the 503."""


class Protocol(HttpToolsProtocol):
    """One connection; `build_protocol` sets its service."""

    service: Service
    connection_limit: ConnectionLimit
    head_since: float | None = None
    """Since when the connection waits for a request's head or receives one (`time.monotonic`); None if it does not."""
    body_since: float | None = None
    """Since when it receives a request's body."""
    unread_since: float | None = None
    """Since when the write buffer has been above its limit, because the client does not read."""
    idle_since: float | None = None
    """Since when the connection has been idle after a response on the fast path."""
    _prefix = ""
    """Prefix of request ids on this connection if the client sends none."""
    _requests = 0
    _chunk = 0
    """Bytes of the current read."""
    _head_bytes = 0
    """Bytes of the current head in earlier reads, except the read in which it began."""
    _is_head_too_large = False
    _is_far_ahead = False
    _is_upgrade = False
    """Whether the current request asks for an upgrade to another protocol."""
    _is_surplus = False
    """Whether this connection is beyond the limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Handle a new connection; its client must send a request in time."""
        super().connection_made(transport)
        self.head_since = time.monotonic()
        self._prefix = secrets.token_hex(12)
        self._is_surplus = not self.connection_limit.admit(self, self.connections)  # type: ignore[arg-type]
        if self._is_surplus:
            self.loop.call_later(REFUSAL_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle a closed connection, perhaps with an incomplete request."""
        super().connection_lost(exc)
        self.connection_limit.refused -= self._is_surplus
        fast = self.cycle
        if isinstance(fast, _FastRequest) and not fast.is_complete:
            fast.refuse(self.service.lifecycle.admission.build_timeout_problem())

    def data_received(self, data: bytes) -> None:
        """Parse received data; a head that is too large is rejected."""
        self._chunk = len(data)
        self.idle_since = None
        if self._is_surplus:
            self._refuse(self.service.lifecycle.admission.build_connections_problem(), "", secrets.token_hex(16))
            return
        self._parse(data)
        if self.head_since is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.service.settings.max_header_bytes:
                self._refuse_head()

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    if not self._is_upgrade:  # The method CONNECT, which no route supports.
                        return
                    data = self._without_upgrade(data[upgrade.args[0] :])
                else:
                    return
        except httptools.HttpParserError:
            self.send_400_response("this is not a valid HTTP/1.1 request")

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Return the request without its upgrade, plus the data after its head, and reset the parser.

        The parser treats the data after the head as the other protocol. A server without that protocol must ignore the
        upgrade and answer the request.
        """
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_upgrade = False
        data = b"\r\n".join([*lines, b"", rest])
        self._chunk = len(data)
        return data

    def pause_writing(self) -> None:
        """Note the time at which the write buffer became full."""
        super().pause_writing()
        self.unread_since = time.monotonic()

    def resume_writing(self) -> None:
        """Note that the client has read the write buffer."""
        super().resume_writing()
        self.unread_since = None

    def on_message_begin(self) -> None:
        """Begin a request; its ASGI scope is created only if it takes the ASGI path."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self.head_since = time.monotonic()
        # The rest of this read may belong to another request; this head's part is counted by its headers.
        self._head_bytes = -self._chunk

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; trailers come after the head was processed and are dropped."""
        if self.body_since is None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the limits of the head, and choose the fast path or the ASGI path."""
        most = self.service.settings.max_header_bytes
        is_small = self._head_bytes == -self._chunk and self._chunk <= most
        if not is_small and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > most:
            # The error stops the parser, which then calls `send_400_response`.
            self._is_head_too_large = True
            raise ValueError("head too large")
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._is_upgrade = True
            return
        self.head_since, self.body_since = None, time.monotonic()
        if not self._try_fast_path():
            if len(self.pipeline) >= MAX_PIPELINED:
                self._is_far_ahead = True
                raise ValueError("too many pipelined requests")
            url, headers, is_expecting = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.headers, self.expect_100_continue = url, headers, is_expecting
            self.scope["headers"] = headers
            super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Reject a malformed request, or one beyond a limit."""
        if self._is_head_too_large:
            self._refuse_head()
        elif self._is_far_ahead:
            self.transport.close()  # Another response is in progress.
        else:
            self._refuse(Problem(400, "malformed-request", msg), "", secrets.token_hex(16))

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        if isinstance(self.cycle, _FastRequest) and not self.cycle.is_complete:
            self.cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Process a complete request."""
        if self._is_upgrade:
            return
        self.body_since = None
        fast = self.cycle
        if isinstance(fast, _FastRequest) and not fast.is_complete:
            fast.is_complete = True
            fast.submit()
        else:
            super().on_message_complete()

    def close_if_slow(self, now: float) -> None:
        """Close the connection of a client that is too slow or idle for too long; `now` is `time.monotonic`."""
        settings, fast = self.service.settings, self.cycle
        if self.unread_since is not None and self.unread_since < now - settings.body_timeout_seconds:
            self.transport.abort()
        elif self.head_since is not None and self.head_since < now - settings.header_timeout_seconds:
            self.transport.close()
        elif self.body_since is not None and self.body_since < now - settings.body_timeout_seconds:
            if isinstance(fast, _FastRequest) and not fast.is_complete:
                fast.refuse(self.service.lifecycle.admission.build_timeout_problem())
            elif not self._is_busy():
                self.transport.close()  # It was answered, but is still sending.
        elif self.idle_since is not None:
            if self.idle_since < now - settings.keep_alive_timeout_seconds:
                self.transport.close()
        elif self.head_since is None and self.body_since is None and self._is_idle():
            self.head_since = now

    def on_fast_response_complete(self) -> None:
        """Like `on_response_complete` but without a timer; `close_if_slow` closes idle connections."""
        if self.pipeline or self.flow.read_paused or self.transport.is_closing():
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.idle_since = time.monotonic()

    @property
    def has_asked(self) -> bool:
        """Whether the client has sent a request."""
        return self.cycle is not None

    @property
    def idle_from(self) -> float | None:
        """Since when the connection has been idle (`time.monotonic`); None while it is in use."""
        if self._is_busy() or self.pipeline or self.body_since is not None or self.unread_since is not None:
            return None
        if self.timeout_keep_alive_task is not None:
            return self.timeout_keep_alive_task.when() - self.timeout_keep_alive
        return self.head_since if self.idle_since is None else self.idle_since

    def close(self) -> None:
        """Close the connection and remove it from the open ones."""
        self.connections.discard(self)
        self.transport.close()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_idle(self) -> bool:
        """Whether the connection is idle without a timer; an empty line after a response cancels uvicorn's timer."""
        return self.timeout_keep_alive_task is None and not self._is_busy()

    def _refuse_head(self) -> None:
        if self.headers is not None and not self._is_busy():
            lifecycle, most = self.service.lifecycle, self.service.settings.max_header_bytes
            path = self.url.partition(b"?")[0].decode("ascii", "replace")
            exchange = lifecycle.begin(self.headers, "", path)
            problem = Problem(
                431,
                "head-too-large",
                f"the head of a request may have at most {most} bytes; send fewer or shorter headers",
            )
            self._refuse(problem, path, exchange.context.request_id)
            lifecycle.finish(exchange, problem.status)
        self.transport.close()

    def _refuse(self, problem: Problem, path: str, request_id: str) -> None:
        status, headers, content = _render_problem(problem, path, request_id)
        self.transport.write(_render_response(self, status, headers, content, request_id, keep_alive=False))
        self.transport.close()

    def _try_fast_path(self) -> bool:
        """Put the request on the fast path if possible; returns whether it is."""
        if self._is_busy() or self.url != b"/predict" or self.parser.get_method() != b"POST":
            return False
        # Only the ASGI path waits for a client that does not read its responses.
        if self.expect_100_continue or self.flow.write_paused:
            return False
        headers, deployment = dict(self.headers), self.service.models.deployment
        length = headers.get(b"content-length", b"")
        if (
            deployment is None
            or not length.isdigit()
            or int(length) > min(MAX_INLINE_BODY_BYTES, self.service.settings.max_body_bytes)
        ):
            return False
        if headers.get(b"content-type", JSON) != JSON or not headers.keys().isdisjoint(UNUSUAL):
            return False
        self._requests += 1
        lifecycle = self.service.lifecycle
        exchange = lifecycle.begin(self.headers, "POST", "/predict", f"{self._prefix}{self._requests:08x}")
        refused = None
        try:
            lifecycle.authorise(self.headers, "/predict")
        except Problem as problem:
            refused = problem
        keep_alive = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
        # Without a challenger the hints have no effect.
        hints = self.service.parse_hints(headers) if deployment.challengers else NO_HINTS
        fast = _FastRequest(self, deployment, exchange, keep_alive, hints)
        self.cycle = fast  # type: ignore[assignment]
        if refused is not None:
            fast.refuse(refused)
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["method"] != "HEAD":
            cycle.transport = _CoalescingTransport(cycle)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)


def build_protocol(service: Service, limit: ConnectionLimit) -> type[Protocol]:
    """Build the protocol class of a server's connections."""
    return type("ServiceProtocol", (Protocol,), {"service": service, "connection_limit": limit})


class _FastRequest:
    """A request on the fast path; replaces uvicorn's `RequestResponseCycle` and has the same attributes."""

    disconnected = False
    response_complete = False
    message_event = asyncio.Event()
    """uvicorn sets this event; the fast path does not wait for it."""

    def __init__(
        self, protocol: Protocol, deployment: Deployment, exchange: Exchange, keep_alive: bool, hints: RoutingHints
    ) -> None:
        self.deployment: Deployment | None = deployment
        self.hints = hints
        self.body = bytearray()
        self.is_complete = False
        self.keep_alive = keep_alive
        self._protocol = protocol
        self._exchange = exchange
        self._has_slot = False

    def submit(self) -> None:
        """Submit the complete request to the batcher, or reject it if the server is overloaded."""
        service = self._protocol.service
        admission = service.lifecycle.admission
        self._has_slot = admission.acquire_slot()
        if self._has_slot:
            assert self.deployment is not None
            request = PredictRequest(bytes(self.body), NATIVE, time.perf_counter(), self.hints, self._exchange.context)
            service.batcher.submit(self.deployment, request, self.answer)
        else:
            self.answer(admission.build_overload_problem())

    def refuse(self, problem: Problem) -> None:
        """Answer with a problem, without waiting for the rest of the body."""
        self.is_complete = True
        self.answer(problem)

    def answer(self, found: bytes | Exception) -> None:
        """Send a response or a problem, and finish the request."""
        protocol = self._protocol
        lifecycle = protocol.service.lifecycle
        self.response_complete = True
        self.deployment = (
            None  # The connection keeps this object until the next request; it must not keep the model alive.
        )
        try:
            status = CLIENT_LEFT if self.disconnected else self._send(found)
        finally:
            if self._has_slot:
                lifecycle.admission.release_slot()
        lifecycle.finish(self._exchange, status)
        if self.disconnected:
            return
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_fast_response_complete()

    def _send(self, found: bytes | Exception) -> int:
        """Write the response; returns its status."""
        protocol, request_id = self._protocol, self._exchange.context.request_id
        status, headers, content = 200, b"content-type: application/json\r\n", found
        if isinstance(content, Exception):
            problem = content
            if not isinstance(problem, Problem):
                problem = protocol.service.lifecycle.log_unexpected(problem, self._exchange.context)
            status, headers, content = _render_problem(problem, "/predict", request_id)
            self.keep_alive = self.keep_alive and "Connection" not in problem.headers
        elif isinstance(content, UnloggedResponse):
            headers += _render_headers([UNLOGGED_HEADER])
        protocol.transport.write(_render_response(protocol, status, headers, content, request_id, self.keep_alive))
        return status


def _render_problem(problem: Problem, path: str, request_id: str) -> tuple[int, bytes, bytes]:
    """Return the status, header lines and body of a problem."""
    response = problem.to_response(path, request_id)
    own = [pair for pair in response.raw_headers if pair[0] not in (b"content-length", b"connection")]
    return response.status_code, _render_headers(own), bytes(response.body)


def _render_response(
    protocol: Protocol, status: int, headers: bytes, content: bytes, request_id: str, keep_alive: bool
) -> bytes:
    return b"%b%b%bcontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
        STATUS_LINE[status],
        _render_common_headers(tuple(protocol.server_state.default_headers)),
        headers,
        len(content),
        request_id.encode(),
        b"" if keep_alive else b"connection: close\r\n",
        content,
    )


@lru_cache(maxsize=8)
def _render_common_headers(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Return the header lines that all responses of this second share."""
    return _render_headers(headers)


def _render_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


class _CoalescingTransport:
    """A transport that sends a response's head together with the start of its body, in one system call and packet."""

    __slots__ = ("_cycle", "_head", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None and self._cycle.response_started:
            self._head = data
        elif self._head:
            self._transport.write(self._head + data)
            self._head = b""
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()
