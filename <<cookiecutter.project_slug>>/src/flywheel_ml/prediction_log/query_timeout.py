"""A timeout for database calls."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

POLL_SECONDS = 0.5


class QueryTimeout:
    """Closes connections whose query takes too long; a frozen or locked database would block its callers forever.

    Args:
        seconds: the longest time that a query may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def guard(self, driver: Any) -> Iterator[None]:
        """Close a driver's connection if the block runs longer than the timeout.

        Raises:
            TimeoutError: the connection was closed; replaces the driver's own error, which would mislead.
        """
        key = id(driver)
        with self._lock:
            self._calls[key] = (time.monotonic() + self._seconds, driver)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="prediction-log-query-timeout", daemon=True)
                self._thread.start()
        try:
            yield
        except Exception:
            if key not in self._calls:
                raise TimeoutError(f"no answer within {self._seconds:g} s") from None
            raise
        finally:
            with self._lock:
                self._calls.pop(key, None)

    def close(self) -> None:
        """Stop the watching thread."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with self._lock:
                now = time.monotonic()
                for key, (until, driver) in list(self._calls.items()):
                    if now >= until:
                        del self._calls[key]
                        # The driver waits on its socket; the operating system reports the shutdown to it.
                        with suppress(Exception), socket.socket(fileno=os.dup(driver.fileno())) as connection:
                            connection.shutdown(socket.SHUT_RDWR)
