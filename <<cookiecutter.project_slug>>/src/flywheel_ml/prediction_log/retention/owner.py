"""Carries out operations on a SQLite file in the process that owns it, between its commits."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from flywheel_ml.prediction_log.retention import requests
from flywheel_ml.prediction_log.retention.operations import Operation, run
from flywheel_ml.prediction_log.stores import SQLiteStore, Unavailable
from flywheel_ml.utils.errors import ProjectError

POLL_SECONDS = 0.25
PROGRESS_SECONDS = 2.0
BUSY_PAUSE, IDLE_PAUSE = 20.0, 1.0
"""How long to pause after a step, in durations of the step: while others write to the file, and while nobody does."""
MIN_PAUSE = 0.002
MAX_RETRIES = 30


class RequestRunner:
    """Polls the folder of requests on a thread of its own, and carries out what other processes ask for.

    The pauses between steps keep the lock free at least 95% of the time while the log is written.

    Args:
        store: the file of this process.
        lock: returns the lock that the store's users hold.
        folder: the log's folder.
        finish: called after each request.
    """

    def __init__(
        self,
        store: SQLiteStore,
        lock: Callable[[], AbstractContextManager[object]],
        folder: Path,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._lock = lock
        self._folder = folder
        self._finish = finish
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="prediction-log-requests", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; the next process that owns the file continues."""
        self._closed.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            stem = self._store.path.stem
            for name in requests.list_open(self._folder, stem):
                try:
                    self._carry_out(name, stem)
                except (ProjectError, OSError, ValueError) as error:
                    logging.getLogger(__name__).error("the request to change %s failed: %s", stem, error)
                    with suppress(OSError):
                        requests.write_result(self._folder, name, stem, {"error": str(error)})

    def _carry_out(self, name: str, stem: str) -> None:
        operation = requests.read_operation(self._folder, name)
        if operation is None:
            return
        counts: Counter[str] = Counter()
        reported = 0.0
        for deleted in self._run_steps(operation):
            counts.update(deleted)
            if self._closed.is_set() or not requests.is_open(self._folder, name):
                return
            if time.monotonic() - reported > PROGRESS_SECONDS:
                requests.write_progress(self._folder, name, stem)
                reported = time.monotonic()
        if self._finish is not None:
            self._finish()
        requests.write_result(self._folder, name, stem, {"counts": dict(counts)})

    def _run_steps(self, operation: Operation) -> Iterator[Counter[str]]:
        steps, retries = run(self._store, operation), 0
        changes = self._store.total_changes
        while True:
            started = 0.0
            try:
                with self._lock():
                    is_busy = self._store.total_changes != changes
                    started = time.perf_counter()
                    deleted = next(steps, None)
                    seconds = time.perf_counter() - started
                    changes = self._store.total_changes
            except Unavailable:
                # Another program holds the file for a short time. A step that failed changed nothing.
                if (retries := retries + 1) > MAX_RETRIES:
                    raise
                self._closed.wait(POLL_SECONDS)
                steps = run(self._store, operation)
                continue
            if deleted is None:
                return
            seconds += self._checkpoint()
            yield deleted
            self._closed.wait(max(MIN_PAUSE, seconds * (BUSY_PAUSE if is_busy else IDLE_PAUSE)))

    def _checkpoint(self) -> float:
        """Move a long journal into the file, as the writer does; returns the seconds that it took."""
        if not self._store.wants_checkpoint:
            return 0.0
        self._store.sync_journal()
        with self._lock():
            started = time.perf_counter()
            self._store.checkpoint()
            return time.perf_counter() - started
