"""A circuit breaker that pauses a model after repeated failures."""

import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

WINDOW, MAX_FAILURES = 100, 10
"""The breaker opens when `MAX_FAILURES` of the last `WINDOW` calls failed. A canary may fail in 1% of its rows. With 5,
the breaker would open in 69% of canaries that do so for 10,000 calls; with 10, in fewer than one of a thousand."""


class CircuitBreaker:
    """Opens when `MAX_FAILURES` of the last `WINDOW` calls failed, and stays open.

    A person has to start the experiment again, which gives it a new salt and a new breaker.

    Args:
        on_open: called once, with the reason.
    """

    def __init__(self, on_open: Callable[[str], None]) -> None:
        self.opened: tuple[datetime, str] | None = None
        self._on_open = on_open
        self._calls: deque[bool] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self._is_retired = False

    def record(self, failure: str | None) -> None:
        """Record a call; `failure` is the reason why it failed, or None."""
        with self._lock:
            self._calls.append(failure is not None)
            failures = sum(self._calls)
            if failure is None or self.opened or self._is_retired or failures < MAX_FAILURES:
                return
            reason = f"{failures} of its last {len(self._calls)} calls failed, the last one: {failure}"
            self.opened = (datetime.now(UTC), reason)
        self._on_open(reason)

    def retire(self) -> None:
        """Keep the breaker closed from now on, because the experiment has ended."""
        with self._lock:
            self._is_retired = True
