"""How much is worked on at once: what comes on top is turned away at once, so that the rest is answered in time."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.metrics import Metrics

JSON = "application/json"
RETRY = {"Retry-After": "1"}
BODIES = 8
"""So many bodies of the largest size may be arriving at once, or more smaller ones."""


def media_type(scope: Scope) -> str:
    """What a request's body is declared to be, without parameters; "" where it says nothing."""
    declared: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return declared.partition(b";")[0].strip().lower().decode("latin-1")


def _require_uncoded(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a body that is compressed, or encoded in another way; raises 415."""
    for name, plain in ((b"content-encoding", {b"", b"identity"}), (b"transfer-encoding", {b"", b"chunked"})):
        codings = {coding.strip() for coding in headers.get(name, b"").lower().split(b",")}
        if not codings <= plain:
            told = f"send the body without '{name.decode().title()}: {b', '.join(codings - plain).decode('latin-1')}'"
            raise Problem(415, "unsupported-content-encoding", told, {"Accept-Encoding": "identity"})


class Admission:
    """Reads bodies and lets requests in, within limits.

    Args:
        body_bytes: most bytes of a body.
        body_timeout_seconds: most time from a request's head to the end of its body.
        requests: most requests worked on at once.
        metrics: where refusals for want of room are counted.
    """

    def __init__(self, body_bytes: int, body_timeout_seconds: float, requests: int, metrics: Metrics) -> None:
        self._body_bytes = body_bytes
        self._body_seconds = body_timeout_seconds
        self._most_requests = requests
        self._metrics = metrics
        self._requests = 0
        self._held = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that are worked on.

        Raises:
            Problem: 503 when there is none.
        """
        if not self.take_place():
            raise self.full()
        try:
            yield
        finally:
            self.give_place()

    def take_place(self) -> bool:
        """Like `place`: whether there was one; if so, `give_place` has to follow."""
        if self._requests >= self._most_requests:
            return False
        self._requests += 1
        return True

    def give_place(self) -> None:
        """Leave a place that was taken."""
        self._requests -= 1

    async def body(self, scope: Scope, receive: Receive, kinds: Sequence[str] = (JSON,)) -> bytes:
        """The body of a request of one of these media types (undeclared, of the first), as much as may be in memory.

        Raises:
            Problem: 408, 413, 415, or 503 when other bodies take up the memory.
            ClientDisconnect: the client left.
        """
        headers = dict(scope["headers"])
        _require_uncoded(headers)
        if (media_type(scope) or kinds[0]) not in kinds:
            ways = " or ".join(f"'{kind}'" for kind in kinds)
            raise Problem(415, "unsupported-media-type", f"send a 'Content-Type' of {ways}")
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(self._body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    held += len(chunk)
                    self._held += len(chunk)
                    if held > self._body_bytes:
                        raise self._too_large()
                    if self._held > BODIES * self._body_bytes:
                        raise self.full()
                    chunks.append(chunk)
        except TimeoutError:
            raise self.too_slow() from None
        finally:
            self._held -= held
        return b"".join(chunks) if len(chunks) > 1 else chunks[0]

    def too_slow(self) -> Problem:
        """What a client is told whose body does not end."""
        told = f"the body was not there within {self._body_seconds:g} s"
        return Problem(408, "body-too-slow", told, {"Connection": "close"})

    def too_many_connections(self) -> Problem:
        """What a client hears on a connection too many."""
        told = "this server has as many connections as it can keep; try again"
        return Problem(503, "too-many-connections", told, RETRY)

    def _too_large(self) -> Problem:
        return Problem(413, "body-too-large", f"a body may have at most {self._body_bytes} bytes")

    def full(self) -> Problem:
        """What those are told that there is no room for."""
        self._metrics.http.turned_away.inc()
        return Problem(503, "overloaded", "more requests came than can be answered in time; try again", RETRY)
