"""Stores rows on disk until their database is available."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import filelock
from pydantic_core import to_json

from flywheel_ml.prediction_log.reader import Reader
from flywheel_ml.prediction_log.retention.owner import RequestRunner
from flywheel_ml.prediction_log.rows import EntityOutcome, MetricValue, Row
from flywheel_ml.prediction_log.stores import BUSY_MS, ClaimedSQLiteStore, SQLiteStore, Unavailable
from flywheel_ml.utils.errors import ProjectError

MAX_MOVED_ROWS = 500
"""Most rows that one transaction moves."""
REJECTED_FILE = "refused.jsonl"
"""File for rows that the database rejects for good."""


class Spool:
    """A bounded SQLite file of this process. Its rows are committed and wait to be moved to the database.

    Args:
        folder: folder of spool files on this machine.
        role: name of the writing process's role.
        synchronous: SQLite's setting.
        max_bytes: the largest size of the file.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path, role: str, synchronous: str, max_bytes: int) -> None:
        self.folder = folder
        self._file = ClaimedSQLiteStore(folder, role, synchronous, max_bytes)
        self._lock = threading.Lock()
        self._reader = Reader(str(folder))
        self.rows = self._file.count()
        self._requests = RequestRunner(self._file, lambda: self._lock, folder, self._recount)

    @property
    def lost_files(self) -> int:
        """Number of spool files that were deleted, moved or overwritten while open."""
        return self._file.losses

    def commit(self, rows: Sequence[Row]) -> None:
        """Commit rows in one transaction; raises `Unavailable` if the spool is full."""
        with self._lock:
            before = self._file.losses
            self._file.commit(rows, BUSY_MS)
            self.rows = self.rows + len(rows) if self._file.losses == before else self._file.count()
            if self._file.wants_checkpoint:
                self._file.checkpoint()

    def find_known(self, ids: Sequence[str]) -> set[str]:
        """Return those ids whose predictions are in the spool file of any process."""
        return self._reader.find_known(ids)

    def labels(self, ids: Sequence[str]) -> dict[str, str]:
        """Return prediction id → label, of the labels in the spool."""
        return self._reader.labels(ids)

    def entity_labels(self, entities: Sequence[str]) -> list[EntityOutcome]:
        """Return the labels of entities that are in the spool."""
        return self._reader.entity_labels(entities)

    def metric_values(self, ids: Sequence[str]) -> list[MetricValue]:
        """Return the values of business metrics in the spool, of these predictions."""
        return self._reader.metric_values(ids)

    def move(self, commit: Callable[[Sequence[Row]], None]) -> bool:
        """Commit some of the rows elsewhere, then delete them here; returns whether there were any.

        After a kill in between, the next process commits the same rows again, so `commit` must be idempotent.

        Raises:
            Unavailable: raised by `commit`, or the spool itself cannot be read or written.
        """
        with self._lock:
            rows = self._file.read_first(MAX_MOVED_ROWS)
        if rows:
            self._commit_or_set_aside(rows, commit)
            with self._lock:
                self.rows -= self._file.remove(rows)
        return bool(rows)

    def move_abandoned(self, commit: Callable[[Sequence[Row]], None]) -> None:
        """Move the rows in files of dead processes; raises as `move`."""
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
        """Close the file; its rows wait for the next process."""
        self._requests.close()
        with self._lock:
            self._file.close()

    def _recount(self) -> None:
        with self._lock:
            self.rows = self._file.count()

    def _commit_or_set_aside(self, rows: Sequence[Row], commit: Callable[[Sequence[Row]], None]) -> None:
        try:
            commit(rows)
        except Unavailable:
            raise
        except Exception:
            # A rejected row must not block the others.
            for row in rows:
                try:
                    commit([row])
                except Unavailable:
                    raise
                except Exception as error:
                    self._set_aside(row, error)

    def _set_aside(self, row: Row, error: Exception) -> None:
        content = {"kind": type(row).__name__, **row._asdict()}
        try:
            with (self.folder / REJECTED_FILE).open("ab") as file:
                file.write(to_json(content, bytes_mode="base64") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            raise Unavailable(f"the spool cannot be written: {failure.strerror}") from None
        reason = error if isinstance(error, ProjectError) else type(error).__name__
        logging.getLogger(__name__).error(
            "the database rejected a spooled row, stored in %s: %s", REJECTED_FILE, reason
        )
