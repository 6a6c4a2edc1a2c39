"""HTTP/1.1 as uvicorn speaks it, with fewer system calls and a limit on how long a request's head may take."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class Protocol(HttpToolsProtocol):
    """One connection."""

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
        super().on_headers_complete()

    def close_if_slow(self, before: float) -> None:
        """Hang up on a client whose request's head has been under way since before that moment."""
        if self.head_since is not None and self.head_since < before:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["method"] != "HEAD":
            cycle.transport = _Joined(cycle)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)


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
