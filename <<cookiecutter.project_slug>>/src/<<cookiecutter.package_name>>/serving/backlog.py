"""What the prediction log has been handed and has not committed yet."""

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from prometheus_client import Gauge

from ..prediction_log import Row, Writer

ABSENT = math.inf
"""What a gauge is set to that is not there: a series cannot be taken back from the files that workers count in."""


class Backlog:
    """Rows under way to the log; safe for all threads.

    Args:
        since: told when the oldest of them was handed over (`time.monotonic`).
    """

    def __init__(self, since: Gauge) -> None:
        self._since = since
        self._open: dict[int, tuple[float, int]] = {}
        self._tickets = 0
        self._turn = threading.Lock()
        since.set(ABSENT)

    def __len__(self) -> int:
        with self._turn:
            return sum(rows for _, rows in self._open.values())

    def hand(self, rows: int) -> int:
        """So many rows are handed over; the ticket to `settle` once they are committed, or have failed."""
        with self._turn:
            now = time.monotonic()
            if not self._open:
                self._since.set(now)
            self._tickets += 1
            self._open[self._tickets] = (now, rows)
            return self._tickets

    def settle(self, ticket: int) -> None:
        """They no longer wait."""
        with self._turn:
            del self._open[ticket]
            self._since.set(next(iter(self._open.values()))[0] if self._open else ABSENT)


class WatchedWriter(Writer):
    """A writer whose backlog is known.

    Args:
        backlog: where that is kept.
        target: as the writer's.
        role: as the writer's.
        options: as the writer's.
    """

    def __init__(self, backlog: Backlog, target: str, role: str, **options: Any) -> None:
        self._backlog = backlog
        super().__init__(target, role, **options)

    def commit(self, rows: Sequence[Row]) -> bool:
        """As the writer's."""
        ticket = self._backlog.hand(len(rows))
        try:
            return super().commit(rows)
        finally:
            self._backlog.settle(ticket)

    def append(self, rows: Sequence[Row]) -> Future[None]:
        """As the writer's."""
        ticket = self._backlog.hand(len(rows))
        committed = super().append(rows)
        committed.add_done_callback(lambda _: self._backlog.settle(ticket))
        return committed
