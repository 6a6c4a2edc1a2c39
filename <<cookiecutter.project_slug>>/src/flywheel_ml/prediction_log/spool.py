"""Rows that wait for their database."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import filelock
from pydantic_core import to_json

from flywheel_ml.prediction_log.reader import Reader
from flywheel_ml.prediction_log.rows import Row
from flywheel_ml.prediction_log.stores import BUSY_MS, ClaimedSQLiteStore, SQLiteStore, Unavailable
from flywheel_ml.utils.errors import ProjectError

MAX_MOVED_ROWS = 500
"""Most rows moved by one transaction."""
REJECTED_FILE = "refused.jsonl"
"""Where rows are kept that the database will never take."""


class Spool:
    """A bounded SQLite file of this process's own; what stands in it has been committed, and waits to be moved.

    Args:
        folder: where such files are, on this machine.
        role: who writes.
        synchronous: SQLite's setting.
        max_bytes: what the file may grow to.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path, role: str, synchronous: str, max_bytes: int) -> None:
        self.folder = folder
        self._file = ClaimedSQLiteStore(folder, role, synchronous, max_bytes)
        self._lock = threading.Lock()
        self._reader = Reader(str(folder))
        self.rows = self._file.count()

    @property
    def lost_files(self) -> int:
        """How many of its files were deleted, moved or overwritten while open."""
        return self._file.losses

    def commit(self, rows: Sequence[Row]) -> None:
        """One transaction; raises `Unavailable` when there is no room."""
        with self._lock:
            before = self._file.losses
            self._file.commit(rows, BUSY_MS)
            self.rows = self.rows + len(rows) if self._file.losses == before else self._file.count()
            if self._file.wants_checkpoint:
                self._file.checkpoint()

    def find_known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids whose predictions wait here, in whichever process's file."""
        return self._reader.find_known(ids)

    def labels(self, ids: Sequence[str]) -> dict[str, str]:
        """Prediction id → label, of those that wait here."""
        return self._reader.labels(ids)

    def move(self, commit: Callable[[Sequence[Row]], None]) -> bool:
        """Commit some of the rows elsewhere, then delete them here; whether there were any.

        Killed in between, the next process commits them again: so `commit` must not mind rows that are there already.

        Raises:
            Unavailable: raised by `commit`, or there is something wrong with the spool itself.
        """
        with self._lock:
            rows = self._file.read_first(MAX_MOVED_ROWS)
        if rows:
            self._commit_or_set_aside(rows, commit)
            with self._lock:
                self.rows -= self._file.remove(rows)
        return bool(rows)

    def move_abandoned(self, commit: Callable[[Sequence[Row]], None]) -> None:
        """The same with all that processes left which live no more; raises as `move`."""
        for path in sorted(self.folder.glob("*.db")):
            lock = filelock.FileLock(self.folder / f".{path.stem}.lock", timeout=0, thread_local=False)
            if path == self._file.path:
                continue
            with suppress(filelock.Timeout), lock:
                left = SQLiteStore(path, "NORMAL")
                try:
                    while rows := left.read_first(MAX_MOVED_ROWS):
                        self._commit_or_set_aside(rows, commit)
                        left.remove(rows)
                finally:
                    left.close()

    def close(self) -> None:
        """Close the file; what stands in it waits for the next process."""
        with self._lock:
            self._file.close()

    def _commit_or_set_aside(self, rows: Sequence[Row], commit: Callable[[Sequence[Row]], None]) -> None:
        try:
            commit(rows)
        except Unavailable:
            raise
        except Exception:
            # One that is refused must not keep the others here.
            for row in rows:
                try:
                    commit([row])
                except Unavailable:
                    raise
                except Exception as error:
                    self._set_aside(row, error)

    def _set_aside(self, row: Row, error: Exception) -> None:
        kept = {"kind": type(row).__name__, **row._asdict()}
        try:
            with (self.folder / REJECTED_FILE).open("ab") as file:
                file.write(to_json(kept, bytes_mode="base64") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            raise Unavailable(f"the spool cannot be written: {fault.strerror}") from None
        told = error if isinstance(error, ProjectError) else type(error).__name__
        logging.getLogger(__name__).error("the database refused a spooled row, kept in %s: %s", REJECTED_FILE, told)
