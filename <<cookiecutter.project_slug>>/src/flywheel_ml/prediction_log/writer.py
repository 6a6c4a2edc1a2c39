"""Writes rows to the log, many in one transaction, and handles outages."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Self

from flywheel_ml.prediction_log.recovery import Recovery
from flywheel_ml.prediction_log.retention.owner import RequestRunner
from flywheel_ml.prediction_log.rows import Block, Row
from flywheel_ml.prediction_log.spool import Spool
from flywheel_ml.prediction_log.stores import BUSY_MS, ClaimedSQLiteStore, PostgresStore, Unavailable
from flywheel_ml.utils.errors import ConfigError, ProjectError

MAX_INLINE_SECONDS = 0.001
"""If commits usually take longer, the background thread does them."""
MAX_TIMED_ROWS = 128
"""Commits with more rows do not count when the usual time of a commit is estimated."""
MAX_PARALLEL_COMMITS, SECONDS_PER_COMMIT = 4, 0.002
"""One more parallel commit for each `SECONDS_PER_COMMIT` that a commit usually takes."""
CHECK_SECONDS = 1.0
"""How often an idle writer checks that its file still exists."""


class Writer:
    """Commits rows: on the caller's own thread with `try_commit`, or from any thread with `append`.

    When the log itself fails, an outage begins. The writer rejects rows at once until the log is available again; it
    retries every `RETRY_SECONDS`. With a spool, it commits rows to the spool instead and moves them after the outage.

    Args:
        target: a folder, or a database URL.
        role: name of the process's role; in a folder, the writer uses the first of `<role>-0.db`, `<role>-1.db`, …
            that no living process holds.
        synchronous: SQLite's setting; NORMAL survives a kill -9, FULL also survives a power loss.
        spool: holds rows during an outage of a database; the writer closes it.
        allow_unavailable: whether to start with an outage if the database is unreachable; implied by a spool.

    Raises:
        ConfigError: the target cannot be opened, or a newer version of this package wrote it.
    """

    def __init__(
        self,
        target: str,
        role: str,
        synchronous: str = "NORMAL",
        spool: Spool | None = None,
        allow_unavailable: bool = False,
    ) -> None:
        if target.startswith("sqlite") and "://" in target:
            raise ConfigError(
                "ML_PREDICTION_LOG: a SQLite file has one writer; give a folder, where each process creates its own"
            )
        self._store: ClaimedSQLiteStore | PostgresStore
        if "://" in target:
            self._store = PostgresStore(target, allow_unavailable or spool is not None)
        else:
            self._store = ClaimedSQLiteStore(Path(target), role, synchronous)
        self._is_local = isinstance(self._store, ClaimedSQLiteStore)
        self._lock = threading.Lock()
        self._recovery = Recovery(self._store, self._exclusively, spool)
        self._usual_seconds = 0.0
        self._queue: queue.SimpleQueue[tuple[Sequence[Row], Future[None]] | None] = queue.SimpleQueue()
        self._closed = False
        self._closing = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, name=f"prediction-log-{at}", daemon=True)
            for at in range(1 if self._is_local else MAX_PARALLEL_COMMITS)
        ]
        for thread in self._threads:
            thread.start()
        self._requests = (
            RequestRunner(self._store, lambda: self._lock, Path(target))
            if isinstance(self._store, ClaimedSQLiteStore)
            else None
        )
        if spool is not None:
            self._recovery.start()

    @property
    def spool(self) -> Spool | None:
        """The spool for rows during an outage, if there is one."""
        return self._recovery.spool

    @property
    def outage(self) -> str | None:
        """Why the log is unavailable; None while it is available."""
        return self._recovery.outage

    @property
    def unavailable_reason(self) -> str | None:
        """Why rows are rejected now; None if they are accepted."""
        recovery = self._recovery
        return None if recovery.outage is None else recovery.unavailable_reason

    @property
    def max_parallel_commits(self) -> int:
        """How many transactions should run in parallel.

        Small transactions cost more work per row, so several run only if they mostly wait for the database.
        """
        return min(len(self._threads), 1 + int(self._usual_seconds / SECONDS_PER_COMMIT))

    @property
    def spooled(self) -> int:
        """Number of rows in the spool of this process."""
        return self._recovery.spooled

    @property
    def lost_files(self) -> int:
        """Number of files of this process, spool included, that were deleted, moved or overwritten while open."""
        losses = self._store.losses if isinstance(self._store, ClaimedSQLiteStore) else 0
        return losses + (spool.lost_files if (spool := self.spool) else 0)

    def try_commit(self, rows: Sequence[Row]) -> bool:
        """Commit now if that takes microseconds without waiting; returns False if not, then call `append`."""
        # A commit that waits for a slow disk or for a server belongs on another thread.
        if not self._is_local or self._recovery.outage or self._usual_seconds > MAX_INLINE_SECONDS:
            return False
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._closed:
                return False
            self._timed_commit(rows)
        except Exception:
            return False  # The background thread waits for locks and isolates bad rows.
        finally:
            self._lock.release()
        if self._store.wants_checkpoint:
            self._queue.put(((), Future()))
        return True

    def append(self, rows: Sequence[Row]) -> Future[None]:
        """Queue rows for the next transaction; the future resolves once they are committed, or raises the error."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # A caller that gives up must not cancel the future.
        if not rows:
            done.set_result(None)
            return done
        with self._closing:
            if self._closed:
                done.set_exception(ProjectError("the prediction log is closed"))
            elif (reason := self.unavailable_reason) is not None:
                done.set_exception(Unavailable(reason))
            else:
                self._queue.put((rows, done))
        return done

    def close(self) -> None:
        """Commit the queued rows and close the store."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        if self._requests is not None:
            self._requests.close()
        for thread in self._threads:
            thread.join()
        self._recovery.stop()
        with self._lock:
            self._store.close()
        self._recovery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        running = True
        while running:
            try:
                batch = [self._queue.get(timeout=CHECK_SECONDS if self._is_local else None)]
            except queue.Empty:
                self._check_file()
                continue
            with suppress(queue.Empty):  # Another thread may have emptied the queue.
                while True:
                    batch.append(self._queue.get_nowait())
            running = None not in batch
            work = [item for item in batch if item is not None and item[0]]
            with self._exclusively():
                self._write(work)
            if self._store.wants_checkpoint:
                self._store.sync_journal()
                with self._lock:
                    self._store.checkpoint()
        self._queue.put(None)  # For the other threads.

    def _check_file(self) -> None:
        """Detect a lost file before rows come. This frees its space, and readers find the new file."""
        with self._lock:
            if isinstance(self._store, ClaimedSQLiteStore) and self.outage is None:
                try:
                    self._store.ensure_in_place()
                except Unavailable as error:
                    self._recovery.begin_outage(error)

    def _write(self, work: Sequence[tuple[Sequence[Row], Future[None]]]) -> None:
        if not work:
            return
        try:
            self._commit([row for rows, _ in work for row in rows])
        except Unavailable as error:  # No row is the cause, so retrying each would only wait again.
            for _, done in work:
                done.set_exception(error)
        except Exception:
            # One bad row must not fail the others: each caller gets the result of its own rows.
            for rows, done in work:
                self._write_each(rows, done)
        else:
            for _, done in work:
                done.set_result(None)

    def _commit(self, rows: Sequence[Row]) -> None:
        if self.outage is None:
            try:
                self._timed_commit(rows, BUSY_MS)
            except Unavailable as error:
                self._recovery.begin_outage(error)
            else:
                return
        self._recovery.spool_rows(rows)

    def _exclusively(self) -> AbstractContextManager[object]:
        """Return a lock for a file, which has one user at a time; none for a database."""
        return self._lock if self._is_local else nullcontext()

    def _timed_commit(self, rows: Sequence[Row], busy_ms: int = 0) -> None:
        started = time.perf_counter()
        self._store.commit(rows, busy_ms)
        if len(rows) <= MAX_TIMED_ROWS and type(rows[0]) is not Block:
            self._usual_seconds += (time.perf_counter() - started - self._usual_seconds) / 16

    def _write_each(self, rows: Sequence[Row], done: Future[None]) -> None:
        try:
            self._commit(rows)
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
