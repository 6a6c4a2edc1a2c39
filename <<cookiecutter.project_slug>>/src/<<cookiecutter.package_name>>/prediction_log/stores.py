"""Where rows are committed: a SQLite file of one's own, or a database that many share."""

import itertools
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import filelock
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from ..errors import ConfigError
from .opening import explained, opened
from .rows import TABLES, Block, Row, by_kind

CHECKPOINT_PAGES = 4000
"""About how much of SQLite's journal is written before its pages go to their places: 16 MB."""

_PAGES_OF_A_COMMIT = 3
_INSERTS = {
    kind: str(sa.insert(table).compile(dialect=sqlite.dialect(paramstyle="qmark"))) for kind, table in TABLES.items()
}


class File:
    """One SQLite file, written through the driver itself: SQLAlchemy's part would cost more than SQLite's."""

    def __init__(self, path: Path, synchronous: str) -> None:
        engine = opened(sa.URL.create("sqlite", database=str(path)))
        with explained(engine):
            engine.dispose()
        # Autocommit: transactions begin where it is said. Threads take turns by the writer's lock.
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        # A checkpoint waits for the disk, so it is made when the background thread has time for it.
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "wal_autocheckpoint=0"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._pages = 0

    def commit(self, rows: Sequence[Row], busy_ms: int = 0) -> None:
        """One transaction; waits so long for a file that another connection locks."""
        run = self._connection.execute
        if busy_ms:
            run(f"PRAGMA busy_timeout={busy_ms}")
        try:
            run("BEGIN IMMEDIATE")
            try:
                for kind, some in by_kind(rows):
                    self._connection.executemany(_INSERTS[kind], some)
                    if kind is Block:
                        self._pages += sum(one.pages for one in some if isinstance(one, Block))
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise
        finally:
            if busy_ms:
                run("PRAGMA busy_timeout=0")
        self._pages += _PAGES_OF_A_COMMIT + len(rows)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether enough was written since the last one."""
        return self._pages >= CHECKPOINT_PAGES

    def checkpoint(self) -> None:
        """Put what stands in the journal into its place."""
        self._pages = 0
        # It is for speed alone: one that fails now is made up for by the next, and the rows are safe where they are.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class Database:
    """A database that looks after itself."""

    wants_checkpoint = False

    def __init__(self, url: str) -> None:
        self._engine = opened(url)

    def commit(self, rows: Sequence[Row], _: int = 0) -> None:
        """One transaction."""
        with self._engine.begin() as connection:
            for kind, some in by_kind(rows):
                connection.execute(sa.insert(TABLES[kind]), [row._asdict() for row in some])

    def checkpoint(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


def claim(folder: Path, role: str) -> tuple[Path, filelock.BaseFileLock]:
    """A SQLite file that this process alone writes; the operating system frees the claim when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"ML_PREDICTION_LOG: the folder '{folder}' cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"ML_PREDICTION_LOG: the folder '{folder}' is not writable")
    for number in itertools.count():
        lock = filelock.FileLock(folder / f".{role}-{number}.lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            continue
        except OSError as error:
            raise ConfigError(f"ML_PREDICTION_LOG: '{lock.lock_file}' cannot be locked: {error.strerror}") from None
        return folder / f"{role}-{number}.db", lock
    raise AssertionError("unreachable")
