"""Handles outages of the prediction log: rejects rows or spools them until the log is available again."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from flywheel_ml.prediction_log.rows import Row
from flywheel_ml.prediction_log.spool import Spool
from flywheel_ml.prediction_log.stores import ClaimedSQLiteStore, PostgresStore, Unavailable

Store = ClaimedSQLiteStore | PostgresStore

RETRY_SECONDS = 1.0
"""How often an unavailable log is tried again."""


class Recovery:
    """Records an outage, spools rows meanwhile, and recovers on its own thread.

    Args:
        store: the log.
        lock: returns a lock to hold while the store is tried; a SQLite store has one user at a time.
        spool: holds rows during an outage; None rejects them.

    Attributes:
        outage: why the log is unavailable; None while it is available.
    """

    def __init__(self, store: Store, lock: Callable[[], AbstractContextManager[object]], spool: Spool | None) -> None:
        self.outage: str | None = None
        self.spool = spool
        self._store = store
        self._lock = lock
        self._outage_since = 0.0
        self._full_until = 0.0
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @property
    def unavailable_reason(self) -> str | None:
        """Why rows are rejected now; None if they are accepted."""
        if self.outage is None:
            return None
        if self.spool is None:
            return self.outage
        return "the spool is full" if time.monotonic() < self._full_until else None

    @property
    def spooled(self) -> int:
        """Number of rows in the spool."""
        return self.spool.rows if self.spool else 0

    def begin_outage(self, error: Unavailable) -> None:
        """Record that an outage begins or continues."""
        with self._state:
            if self.outage is None:
                self._outage_since = time.monotonic()
                logging.getLogger(__name__).error("the prediction log is unavailable: %s", error)
            self.outage = str(error)
        self.start()

    def spool_rows(self, rows: Sequence[Row]) -> None:
        """Commit rows to the spool.

        Raises:
            Unavailable: there is no spool, or it is full.
        """
        if self.spool is None:
            raise Unavailable(self.outage or "the log has just recovered")
        try:
            self.spool.commit(rows)
        except Unavailable as error:
            self._full_until = time.monotonic() + RETRY_SECONDS
            logging.getLogger(__name__).error("the spool of the prediction log is unavailable: %s", error)
            raise
        self.start()

    def start(self) -> None:
        """Start a thread that retries the log and empties the spool until both succeed."""
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prediction-log-recovery", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Stop the thread; call `close` once nothing is committed any more."""
        self._closed.set()
        if (thread := self._thread) is not None:
            thread.join()

    def close(self) -> None:
        """Close the spool."""
        if self.spool is not None:
            self.spool.close()

    def _run(self) -> None:
        while not self._closed.wait(RETRY_SECONDS):
            try:
                if self.outage is not None:
                    with self._lock():
                        self._store.probe()
                    self._end_outage()
                self._empty_spool()
            except Unavailable:
                continue
            except Exception:
                logging.getLogger(__name__).exception("the prediction log could not be recovered")
                continue
            with self._state:
                if self.outage is None and not self.spooled:
                    self._thread = None
                    return

    def _end_outage(self) -> None:
        with self._state:
            seconds = time.monotonic() - self._outage_since
            self.outage = None
        logging.getLogger(__name__).warning("the prediction log is available again, after %.1f s", seconds)

    def _empty_spool(self) -> None:
        if self.spool is None:
            return
        while not self._closed.is_set() and self.spool.move(self._commit):
            pass
        if not self._closed.is_set():
            self.spool.move_abandoned(self._commit)

    def _commit(self, rows: Sequence[Row]) -> None:
        try:
            self._store.commit(rows)
        except Unavailable as error:
            self.begin_outage(error)
            raise
