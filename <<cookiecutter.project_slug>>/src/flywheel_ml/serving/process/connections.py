"""How many connections a worker keeps: fewer than it has file descriptors, however many clients connect."""

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
"""Most connections that the event loop accepts in a row. Each has a descriptor before anything can decide about it."""
QUEUE = 2048
"""Connections that the kernel keeps until they are accepted."""
RESERVED = 4 * ACCEPTS + 48
"""Descriptors for connections that are being accepted or closed, and for the files of the log, bundles and metrics."""
SURPLUS = ACCEPTS
"""Connections beyond the limit that are told so; further ones are closed without a word."""
SHARE_CLOSED = 0.1
"""Share of the idle connections that is closed at once, so that not every new one has to look for the oldest."""
LOG_SECONDS = 60.0


def raise_descriptor_limit(connections: int) -> None:
    """Raise this process's own limit on descriptors, where the system allows, to what so many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _count_descriptors() + RESERVED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def count_free_descriptors() -> int:
    """How many connections there are descriptors for, beyond those that are open or reserved; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else max(1, soft - _count_descriptors() - RESERVED)


def _count_descriptors() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        return 64


class ConnectionLimit:
    """Makes room for new connections by closing idle ones, the oldest first; refuses them where none is idle.

    Args:
        most: connections at a time.
        metrics: where closed and refused ones are counted.
        log: told once a minute at most.

    Attributes:
        refused: connections that are open only to be told that there are too many.
    """

    def __init__(self, most: int, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
        self.most = most
        self.refused = 0
        self._metrics = metrics
        self._log = log
        self._logged_at = -math.inf

    def admit(self, new: "Protocol", connections: set["Protocol"]) -> bool:
        """Whether a new connection, which is among `connections` already, may stay; if not, it is so no longer.

        One that may not counts as `refused`, and whoever closes it counts it off.
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
        """A connection could not be accepted, because something else took the descriptors."""
        self._warn("connection_not_accepted", reason=error.strerror)
        self._close_idle(connections)

    def _close_idle(self, connections: Iterable["Protocol"]) -> int:
        # Those that never asked anything first: they cost nobody a connection that was in use.
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
