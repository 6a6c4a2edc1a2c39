"""Admission control: caps concurrent requests and bodies in memory, and rejects the excess immediately."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.metrics import Metrics

JSON = "application/json"
RETRY = {"Retry-After": "1"}
MAX_CONCURRENT_BODIES = 8
"""How many bodies of the maximum size may arrive concurrently, or more smaller ones."""


def parse_media_type(scope: Scope) -> str:
    """Return the media type in `Content-Type`, without parameters; "" if the header is missing."""
    declared: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return declared.partition(b";")[0].strip().lower().decode("latin-1")


def _reject_encoded_body(headers: Mapping[bytes, bytes]) -> None:
    """Reject a body that is compressed or otherwise encoded; raises 415."""
    for name, plain in ((b"content-encoding", {b"", b"identity"}), (b"transfer-encoding", {b"", b"chunked"})):
        codings = {coding.strip() for coding in headers.get(name, b"").lower().split(b",")}
        if not codings <= plain:
            detail = f"send the body without '{name.decode().title()}: {b', '.join(codings - plain).decode('latin-1')}'"
            raise Problem(415, "unsupported-content-encoding", detail, {"Accept-Encoding": "identity"})


class Admission:
    """Reads bodies and admits requests, within limits.

    Args:
        body_bytes: maximum bytes of a body.
        body_timeout_seconds: maximum time from the end of a request's head to the end of its body.
        max_requests: maximum number of concurrent requests.
        metrics: counts rejected requests.
    """

    def __init__(self, body_bytes: int, body_timeout_seconds: float, max_requests: int, metrics: Metrics) -> None:
        self._body_bytes = body_bytes
        self._body_seconds = body_timeout_seconds
        self._max_requests = max_requests
        self._metrics = metrics
        self._requests = 0
        self._buffered_bytes = 0

    @contextmanager
    def hold_slot(self) -> Iterator[None]:
        """Hold a slot for a request in progress.

        Raises:
            Problem: 503 if all slots are taken.
        """
        if not self.acquire_slot():
            raise self.build_overload_problem()
        try:
            yield
        finally:
            self.release_slot()

    def acquire_slot(self) -> bool:
        """Take a slot and return True, or return False if all are taken; the caller must call `release_slot`."""
        if self._requests >= self._max_requests:
            return False
        self._requests += 1
        return True

    def release_slot(self) -> None:
        """Release a slot that `acquire_slot` took."""
        self._requests -= 1

    async def read_body(self, scope: Scope, receive: Receive, media_types: Sequence[str] = (JSON,)) -> bytes:
        """Read the body of a request; `media_types` are the accepted media types, the first is the default.

        Raises:
            Problem: 408, 413 or 415 for the body, 503 if other bodies use up the memory limit.
            ClientDisconnect: the client closed the connection.
        """
        headers = dict(scope["headers"])
        _reject_encoded_body(headers)
        if (parse_media_type(scope) or media_types[0]) not in media_types:
            ways = " or ".join(f"'{media_type}'" for media_type in media_types)
            raise Problem(415, "unsupported-media-type", f"send a 'Content-Type' of {ways}")
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._body_bytes:
            raise self._build_size_problem()
        chunks: list[bytes] = []
        buffered = 0
        try:
            async with asyncio.timeout(self._body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    buffered += len(chunk)
                    self._buffered_bytes += len(chunk)
                    if buffered > self._body_bytes:
                        raise self._build_size_problem()
                    if self._buffered_bytes > MAX_CONCURRENT_BODIES * self._body_bytes:
                        raise self.build_overload_problem()
                    chunks.append(chunk)
        except TimeoutError:
            raise self.build_timeout_problem() from None
        finally:
            self._buffered_bytes -= buffered
        return b"".join(chunks) if len(chunks) > 1 else chunks[0]

    def build_timeout_problem(self) -> Problem:
        """Return 408 for a body that did not arrive in time."""
        detail = f"the body did not arrive within {self._body_seconds:g} s"
        return Problem(408, "body-too-slow", detail, {"Connection": "close"})

    def build_connections_problem(self) -> Problem:
        """Return 503 for a connection beyond the limit."""
        detail = "this server has reached its connection limit; try again"
        return Problem(503, "too-many-connections", detail, RETRY)

    def _build_size_problem(self) -> Problem:
        return Problem(413, "body-too-large", f"a body may have at most {self._body_bytes} bytes")

    def build_overload_problem(self) -> Problem:
        """Count a rejected request and return 503 for it."""
        self._metrics.http.requests_rejected.inc()
        return Problem(503, "overloaded", "this server has too many requests in progress; try again", RETRY)
