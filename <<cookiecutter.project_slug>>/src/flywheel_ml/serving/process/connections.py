"""Limits the connections of a worker, so that it never runs out of file descriptors."""

import math
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from flywheel_ml.serving.observability.metrics import Metrics

if TYPE_CHECKING:
    from flywheel_ml.serving.process.protocol import Protocol

ACCEPTS = 16
"""Maximum connections that the event loop accepts in a row. Each uses a descriptor before the limit is checked."""
QUEUE = 2048
"""Maximum connections that wait in the kernel until they are accepted."""
RESERVED = 4 * ACCEPTS + 48
"""Descriptors reserved for connections being accepted or closed, and for files of the log, bundles and metrics."""
SURPLUS = ACCEPTS
"""Connections beyond the limit that get a 503; further ones are closed without a response."""
SHARE_CLOSED = 0.1
"""Share of the idle connections that is closed together, so that the search for the oldest is rare."""
LOG_SECONDS = 60.0


def raise_descriptor_limit(connections: int) -> None:
    """Raise this process's limit on descriptors to what `connections` need, if the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _count_descriptors() + RESERVED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def count_free_descriptors() -> int:
    """Return the number of descriptors left for connections, without open and reserved ones; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else max(1, soft - _count_descriptors() - RESERVED)


def _count_descriptors() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        return 64


class ConnectionLimit:
    """Closes the oldest idle connections to admit new ones; rejects new ones if none is idle.

    Args:
        most: maximum open connections.
        metrics: counts closed and rejected connections.
        log: receives at most one warning per minute.

    Attributes:
        refused: rejected connections that are open only until they get their 503.
    """

    def __init__(self, most: int, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
        self.most = most
        self.refused = 0
        self._metrics = metrics
        self._log = log
        self._logged_at = -math.inf

    def admit(self, new: "Protocol", connections: set["Protocol"]) -> bool:
        """Return whether a new connection, which is already in `connections`, is admitted.

        A rejected one is removed from `connections` and counted in `refused`; the caller decrements that on close.
        """
        if len(connections) <= self.most:
            return True
        self._warn("too_many_connections", limit=self.most)
        if self._close_idle(connection for connection in connections if connection is not new):
            return True
        self._metrics.http.connections_rejected.inc()
        self.refused += 1
        connections.discard(new)
        if self.refused > SURPLUS:
            new.close()
        return False

    def on_exhausted(self, error: OSError, connections: set["Protocol"]) -> None:
        """Close idle connections after one could not be accepted for lack of descriptors."""
        self._warn("connection_not_accepted", reason=error.strerror)
        self._close_idle(connections)

    def _close_idle(self, connections: Iterable["Protocol"]) -> int:
        # Connections without any request first, because closing them never breaks a connection in use.
        idle = [(one.has_asked, since, one) for one in connections if (since := one.idle_from) is not None]
        idle.sort(key=lambda found: found[:2])
        closed = idle[: math.ceil(len(idle) * SHARE_CLOSED)]
        for *_, connection in closed:
            connection.close()
        self._metrics.http.connections_closed.inc(len(closed))
        return len(closed)

    def _warn(self, event: str, **fields: object) -> None:
        if (now := time.monotonic()) - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            self._log.warning(event, **fields)
