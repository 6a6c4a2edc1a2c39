"""Runs the calls of one model on a separate thread."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

MAX_CALL_ROWS = 500
"""Maximum rows of one call, so that a large request does not delay small ones."""
MAX_QUEUED_ROWS = 5000
"""Maximum rows that wait for one model."""
NICE = 10
"""Niceness added to the experiment's thread, so that it never competes with the champion. At 0, on two busy cores, a
slow model doubled the p99 latency of the champion's callers."""


class Runner:
    """A thread that runs jobs one after another; a slow or failing job never blocks other threads.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queued_rows = 0
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, rows: int, job: Callable[[], T]) -> Future[T] | None:
        """Queue a job of `rows` rows and return its future; None if too many rows wait already."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(job())
            except BaseException as error:  # The caller gets the error and the thread continues.
                done.set_exception(error)
            finally:
                with self._lock:
                    self._queued_rows -= rows

        with self._lock:
            if self._closed or self._queued_rows + rows > MAX_QUEUED_ROWS:
                return None
            self._queued_rows += rows
            if self._thread is None:
                # A daemon thread, so that a model that never returns cannot keep the server from stopping.
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        self._jobs.put(run)
        return done

    def timeout(self, seconds: float) -> float:
        """Return how long to wait for the last submitted job; `seconds` is the time for `MAX_CALL_ROWS` rows."""
        return seconds * (1 + self._queued_rows // MAX_CALL_ROWS)

    def close(self) -> None:
        """End the thread after the queued jobs; later jobs are rejected."""
        with self._lock:
            self._closed = True
        self._jobs.put(None)

    def _work(self) -> None:
        if sys.platform == "linux":  # On other systems only processes have a priority.
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICE)
        while (job := self._jobs.get()) is not None:
            job()
