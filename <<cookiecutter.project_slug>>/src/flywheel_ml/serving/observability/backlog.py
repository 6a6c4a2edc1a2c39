"""Rows that were handed to the prediction log and are not committed yet."""

import math
import threading
import time

from prometheus_client import Gauge

ABSENT = math.inf
"""Value of a gauge without a value; a series cannot be removed from the files that workers count in."""


class Backlog:
    """Rows on their way to the log; thread-safe.

    Args:
        since: set to the time when the oldest of them was added (`time.monotonic`).
    """

    def __init__(self, since: Gauge) -> None:
        self._since = since
        self._open: dict[int, tuple[float, int]] = {}
        self._tokens = 0
        self._turn = threading.Lock()
        since.set(ABSENT)

    def __len__(self) -> int:
        with self._turn:
            return sum(rows for _, rows in self._open.values())

    def add(self, rows: int) -> int:
        """Add rows and return a token; pass it to `remove` once they are committed, or have failed."""
        with self._turn:
            now = time.monotonic()
            if not self._open:
                self._since.set(now)
            self._tokens += 1
            self._open[self._tokens] = (now, rows)
            return self._tokens

    def remove(self, token: int) -> None:
        """Remove the rows of a token."""
        with self._turn:
            del self._open[token]
            self._since.set(next(iter(self._open.values()))[0] if self._open else ABSENT)
