"""HTTP/1.1 as uvicorn speaks it, with a limit on how long a request's head may take, and a short way to predictions.

A plain request for predictions (POST /predict, a small JSON body of declared length, an accepted key, a model and a
place) goes from the parser into the next batch and from there to the socket. Everything else, refusals included,
takes the long way through ASGI, which tells the same `Predictor`, `Guard`, `Admission` and `Telemetry`.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .api import Service
from .live import Live
from .predict import INLINE_BYTES
from .problems import Problem
from .telemetry import CLIENT_LEFT, request_id_of
from .trial import NO_WISH, Wish, wish_of

JSON = b"application/json"
UNUSUAL = {b"transfer-encoding", b"upgrade"}


class Protocol(HttpToolsProtocol):
    """One connection; `protocol_for` gives it its service."""

    service: Service
    head_since: float | None = None
    """Since when a request's head has been awaited or under way (`time.monotonic`); None while there is none."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection owes a request."""
        super().connection_made(transport)
        self.head_since = time.monotonic()

    def on_message_begin(self) -> None:
        """The first byte of a request came."""
        super().on_message_begin()
        self.head_since = time.monotonic()

    def on_headers_complete(self) -> None:
        """The head is there; the body has a limit of its own."""
        self.head_since = None
        if not self._is_plain():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        if isinstance(self.cycle, _Short) and not self.cycle.is_whole:
            self.cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        short = self.cycle
        if isinstance(short, _Short) and not short.is_whole:
            short.is_whole = True
            short.ask()
        else:
            super().on_message_complete()

    def end_if_slow(self, now: float) -> None:
        """Hang up on a client whose request has been under way for too long; `now` is `time.monotonic`."""
        settings, short = self.service.settings, self.cycle
        if self.head_since is not None and self.head_since < now - settings.head_seconds:
            self.transport.close()
        elif isinstance(short, _Short) and not short.is_whole and short.since < now - settings.body_seconds:
            short.is_whole = True
            short.answer(self.service.admission.too_slow())

    def _is_plain(self) -> bool:
        """Whether the request may take the short way; if so, it is on it."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.url != b"/predict" or self.parser.get_method() != b"POST" or self.expect_100_continue:
            return False
        headers, live = dict(self.headers), self.service.models.live
        length = headers.get(b"content-length", b"")
        if (
            live is None
            or not length.isdigit()
            or int(length) > min(INLINE_BYTES, self.service.settings.max_body_bytes)
        ):
            return False
        if headers.get(b"content-type", JSON) != JSON or not headers.keys().isdisjoint(UNUSUAL):
            return False
        try:
            self.service.guard.admit(self.headers)
        except Problem:
            return False
        keep_alive = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
        # Without a challenger there is nothing to wish for.
        wish = NO_WISH if live.challenger is None else wish_of(headers, self.service.settings.variant_header)
        self.cycle = _Short(self, live, request_id_of(self.headers), keep_alive, wish)  # type: ignore[assignment]
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["method"] != "HEAD":
            cycle.transport = _Joined(cycle)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)


def protocol_for(service: Service) -> type[Protocol]:
    """The class of a server's connections."""
    return type("ServiceProtocol", (Protocol,), {"service": service})


class _Short:
    """A request on the short way; stands where uvicorn keeps the one that it answers, and is asked the same."""

    def __init__(self, protocol: Protocol, live: Live, request_id: str, keep_alive: bool, wish: Wish) -> None:
        self.live = live
        self.wish = wish
        self.body = bytearray()
        self.is_whole = False
        self.since = time.monotonic()
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = asyncio.Event()
        self._protocol = protocol
        self._request_id = request_id
        self._started = time.perf_counter()
        self._has_place = False
        protocol.service.front.enter()

    def ask(self) -> None:
        """The request is whole: into the next batch, if there is room."""
        service = self._protocol.service
        self._has_place = service.admission.take_place()
        if self._has_place:
            service.predictor.submit(self.live, bytes(self.body), self.answer, wish=self.wish)
        else:
            self.answer(service.admission.full())

    def answer(self, found: bytes | Exception) -> None:
        """Send an answer or a problem, and be done."""
        protocol = self._protocol
        front = protocol.service.front
        if self._has_place:
            protocol.service.admission.give_place()
        self.response_complete = True
        if self.disconnected:
            front.leave("/predict", "POST", self._request_id, CLIENT_LEFT, self._started)
            return
        status, headers, content = 200, b"content-type: application/json\r\n", found
        if isinstance(content, Exception):
            problem = content if isinstance(content, Problem) else front.unexpected(content, self._request_id)
            response = problem.response("/predict", self._request_id)
            status, content = response.status_code, bytes(response.body)
            own = [pair for pair in response.raw_headers if pair[0] not in (b"content-length", b"connection")]
            headers = _lines(own)
            self.keep_alive = self.keep_alive and "Connection" not in problem.headers
        protocol.transport.write(
            b"%b%b%bcontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"
            % (
                STATUS_LINE[status],
                _lines(protocol.server_state.default_headers),
                headers,
                len(content),
                self._request_id.encode(),
                b"" if self.keep_alive else b"connection: close\r\n",
                content,
            )
        )
        front.leave("/predict", "POST", self._request_id, status, self._started)
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


class _Joined:
    """A transport that sends the head of a response with the beginning of its body: one system call and one packet."""

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
