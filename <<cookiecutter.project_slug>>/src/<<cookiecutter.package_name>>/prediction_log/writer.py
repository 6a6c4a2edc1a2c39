"""The writer: rows in, one transaction for all that came meanwhile."""

import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import filelock
import sqlalchemy as sa

from ..errors import ConfigError, ProjectError
from .rows import Block, Row
from .stores import Database, File, claim

BUSY_MS = 5000
"""How long the background thread waits for a SQLite file that somebody locked."""
QUICK_SECONDS = 0.001
"""Where commits usually take longer, they are left to the background thread."""
SMALL = 128
"""Most rows of a commit that tells how quick commits are here."""


class Writer:
    """Commits rows: on the caller's own thread with `commit`, or from any thread with `append`.

    Args:
        target: a folder, or a database URL.
        role: who writes; in a folder, the first of `<role>-0.db`, `<role>-1.db`, … that no living process holds.
        synchronous: SQLite's setting; NORMAL survives a kill -9, FULL a power loss too.

    Raises:
        ConfigError: the target cannot be opened, or a newer version of this package wrote it.
    """

    def __init__(self, target: str, role: str, synchronous: str = "NORMAL") -> None:
        self._claim: filelock.BaseFileLock | None = None
        if target.startswith("sqlite") and "://" in target:
            raise ConfigError(
                "ML_PREDICTION_LOG: a SQLite file has one writer; give a folder, where each process makes its own"
            )
        self._store: File | Database
        if "://" in target:
            self._store = Database(target)
        else:
            path, self._claim = claim(Path(target), role)
            try:
                self._store = File(path, synchronous)
            except BaseException:
                self._claim.release()
                raise
        self._is_local = isinstance(self._store, File)
        self._usual_seconds = 0.0
        self._turn = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Sequence[Row], Future[None]] | None] = queue.SimpleQueue()
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def commit(self, rows: Sequence[Row]) -> bool:
        """Commit now, where that takes microseconds and waits for nobody; False: nothing was done, use `append`."""
        # A commit that waits for a slow disk, or for a server, belongs beside the caller's thread.
        if not self._is_local or self._usual_seconds > QUICK_SECONDS or not self._turn.acquire(blocking=False):
            return False
        try:
            if self._closed:
                return False
            self._timed_commit(rows)
        except Exception:
            return False  # The background thread will wait for what is locked, and tell rows apart.
        finally:
            self._turn.release()
        if self._store.wants_checkpoint:
            self._queue.put(((), Future()))
        return True

    def append(self, rows: Sequence[Row]) -> Future[None]:
        """Queue rows for the next transaction; the future resolves once they are committed, or with its error."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # A caller that gives up must not take the result from the thread.
        if not rows:
            done.set_result(None)
            return done
        with self._closing:
            if self._closed:
                done.set_exception(ProjectError("the prediction log is closed"))
            else:
                self._queue.put((rows, done))
        return done

    def close(self) -> None:
        """Commit what is queued and close the file."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        with self._turn:
            self._store.close()
        if self._claim is not None:
            self._claim.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        running = True
        while running:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            running = None not in batch
            work = [item for item in batch if item is not None and item[0]]
            with self._turn:
                self._write(work)
                if self._store.wants_checkpoint:
                    self._store.checkpoint()

    def _write(self, work: Sequence[tuple[Sequence[Row], Future[None]]]) -> None:
        if not work:
            return
        try:
            self._timed_commit([row for rows, _ in work for row in rows], BUSY_MS)
        except (sqlite3.OperationalError, sa.exc.OperationalError) as error:
            for _, done in work:  # It is the database's fault, and waiting for it once is enough.
                done.set_exception(error)
        except Exception:
            # One bad row must not take its neighbours down: each caller hears of its own.
            for rows, done in work:
                self._write_alone(rows, done)
        else:
            for _, done in work:
                done.set_result(None)

    def _timed_commit(self, rows: Sequence[Row], busy_ms: int = 0) -> None:
        started = time.perf_counter()
        self._store.commit(rows, busy_ms)
        if len(rows) <= SMALL and type(rows[0]) is not Block:
            self._usual_seconds += (time.perf_counter() - started - self._usual_seconds) / 16

    def _write_alone(self, rows: Sequence[Row], done: Future[None]) -> None:
        try:
            self._store.commit(rows, BUSY_MS)
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
