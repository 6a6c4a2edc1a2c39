"""Runs calls of a model on a thread of its own."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

CHUNK = 500
"""Most rows of one call, so that a large request does not keep small ones waiting."""
MAX_ROWS = 5000
"""Most rows that wait for one model."""
NICE = 10
"""By how much the thread gives way to others: with a core to spare it notices nothing, without one the champion does
not either. At 0, on two cores that others kept busy, a slow model doubled the p99 of the champion's callers."""


class Runner:
    """A thread that runs jobs one after another; whatever they do there, other threads go on.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rows = 0
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, rows: int, job: Callable[[], T]) -> Future[T] | None:
        """Run a job of so many rows after those before it; None when too many rows wait already."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(job())
            except BaseException as error:  # Whatever it was, the caller hears of it and the thread goes on.
                done.set_exception(error)
            finally:
                with self._lock:
                    self._rows -= rows

        with self._lock:
            if self._closed or self._rows + rows > MAX_ROWS:
                return None
            self._rows += rows
            if self._thread is None:
                # A daemon: a model that never returns must not keep the server from stopping.
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        self._jobs.put(run)
        return done

    def timeout(self, seconds: float) -> float:
        """How long to wait for the job submitted last, when `seconds` is the time for each `CHUNK` of rows."""
        return seconds * (1 + self._rows // CHUNK)

    def close(self) -> None:
        """End the thread after the jobs at hand; later ones are not taken."""
        with self._lock:
            self._closed = True
        self._jobs.put(None)

    def _work(self) -> None:
        if sys.platform == "linux":  # Elsewhere only whole processes have a priority.
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICE)
        while (job := self._jobs.get()) is not None:
            job()
