"""What the prediction log has been handed and has not committed yet."""

import math
import threading
import time

from prometheus_client import Gauge

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
