"""Stores that commit rows: a SQLite file per process, or a shared PostgreSQL database."""

import itertools
import logging
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import filelock
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from flywheel_ml.prediction_log.database_engine import create_engine, ensure_schema, open_engine, translate_errors
from flywheel_ml.prediction_log.query_timeout import QueryTimeout
from flywheel_ml.prediction_log.rows import (
    TABLES,
    Block,
    EntityOutcome,
    MetricValue,
    Outcome,
    Row,
    entity_labels,
    group_by_kind,
    labels,
    metric_values,
    versions,
)
from flywheel_ml.utils.errors import ConfigError, ProjectError

CHECKPOINT_PAGES = 1000
"""Pages in SQLite's journal that trigger a checkpoint: about 4 MB. A checkpoint delays commits by 1 to 2 ms."""
BUSY_MS = 5000
"""How long the background thread waits for a locked SQLite file."""
PAGE_BYTES = 4096
TRANSACTION_SECONDS = 5.0
"""The longest time that a database may take for one transaction."""
JOURNAL_STARTS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83", b"")
"""First bytes of a write-ahead log; empty before its first commit. A truncated log begins with zeros."""

_PAGES_PER_COMMIT = 3
_INSERTS = {
    kind: str(sa.insert(table).compile(dialect=sqlite.dialect(paramstyle="qmark"))) for kind, table in TABLES.items()
}
_COLUMNS = {kind: ", ".join([f'"{column.name}"' for column in table.columns]) for kind, table in TABLES.items()}
_COPIES = {kind: f"COPY {table.name} ({_COLUMNS[kind]}) FROM STDIN" for kind, table in TABLES.items()}


class Unavailable(ProjectError):
    """The store cannot commit any rows now: the disk is full, or the database is locked or unreachable."""

    transient = True


class FileLost(Unavailable):
    """The file was deleted, moved, replaced or truncated while open; rows written to it would be lost."""


class LabelConflict(ProjectError):
    """Predictions, or entities at a time, that already have a different label or value of a metric.

    Args:
        ids: ids of these predictions, or keys of these entities.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"{len(ids)} of the predictions or entities already have another label")
        self.ids = ids


class SQLiteStore:
    """One SQLite file, written directly through the driver, because SQLAlchemy would take longer than SQLite.

    After each commit it checks that the path still leads to the written file. SQLite does not check: it keeps writing
    to a deleted file and reports success.

    Args:
        path: path of the file, created if absent.
        synchronous: SQLite's setting.
        max_bytes: the largest size without the journal; 0 for no limit.

    Attributes:
        path: path of the file; changes if the file is lost and replaced.
    """

    def __init__(self, path: Path, synchronous: str, max_bytes: int = 0) -> None:
        self._synchronous = synchronous
        self._max_bytes = max_bytes
        self._open(path)

    def _open(self, path: Path) -> None:
        engine = open_engine(sa.URL.create("sqlite", database=str(path)))
        with translate_errors(engine):
            engine.dispose()
        # Autocommit: transactions begin explicitly. The owner's lock ensures that one thread at a time uses this.
        # A reader may be recovering the journal of a killed process. Wait for it here, not later.
        self._connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        # A checkpoint waits for the disk, so the background thread does it.
        pragmas = ["journal_mode=WAL", f"synchronous={self._synchronous}", "wal_autocheckpoint=0", "secure_delete=ON"]
        if self._max_bytes:
            pragmas.append(f"max_page_count={max(1, self._max_bytes // PAGE_BYTES)}")
        self.path, self._journal, self._index = (Path(f"{path}{ending}") for ending in ("", "-wal", "-shm"))
        try:
            for pragma in pragmas:
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.execute(f"SELECT 1 FROM {versions.name}").fetchall()  # noqa: S608 - creates the journal
            self._connection.execute("PRAGMA busy_timeout=0")
            file, self._index_inode = self.path.stat(), self._index.stat().st_ino
            self._journal_fd = os.open(self._journal, os.O_RDWR)
        except (sqlite3.Error, OSError) as error:
            self._connection.close()
            raise ConfigError(f"prediction log '{path}' cannot be used: {error}") from None
        self._names = str(self.path), str(self._journal)
        self._identity = (file.st_dev, file.st_ino, os.fstat(self._journal_fd).st_ino)
        self._bytes = file.st_size
        self._loss = ""
        self._is_overwritten = False
        self._pages = 0

    def commit(self, rows: Sequence[Row], busy_ms: int = 0) -> None:
        """Commit rows in one transaction; waits up to `busy_ms` for another connection's lock.

        Raises:
            Unavailable: the file cannot be written now.
            FileLost: the path no longer leads to this file; the rows were not committed.
        """
        if self._loss:
            raise FileLost(self._loss)
        if len(rows) == 1 and not busy_ms:  # A single statement is its own transaction, a third faster.
            try:
                self._connection.execute(_INSERTS[type(rows[0])], tuple(rows[0]))
            except sqlite3.Error as error:
                raise _classify_error(error) from None
        else:
            with self._transaction(busy_ms):
                for kind, some in group_by_kind(rows):
                    # The driver binds the values of a plain tuple faster than those of a named one, by a fifth.
                    self._connection.executemany(_INSERTS[kind], map(tuple, some))
        self._pages += _PAGES_PER_COMMIT + len(rows)
        if Block in set(map(type, rows)):
            self._pages += sum(row.pages for row in rows if isinstance(row, Block))
        if not self._is_in_place():
            with suppress(Exception):  # They will be committed elsewhere, and a moved file may return.
                self.remove(rows)
            raise FileLost(self._loss)

    def probe(self) -> None:
        """Test whether rows can be committed, by a transaction that changes none; raises as `commit`."""
        if not self._is_in_place():
            raise FileLost(self._loss)
        try:
            with self._transaction(0):
                (count,) = self._connection.execute("PRAGMA user_version").fetchone()
                self._connection.execute(f"PRAGMA user_version={(count + 1) % 2**31}")
        except Unavailable:
            if os.fstat(self._journal_fd).st_size:
                raise
            # SQLite misses its content. An empty journal is fine if a transaction can begin it again.
            self._mark_lost("'s journal was truncated", is_overwritten=True)
        if not self._is_in_place():
            raise FileLost(self._loss)

    def count(self) -> int:
        """Return the number of rows."""
        counts = (self._connection.execute(f"SELECT count(*) FROM {table.name}") for table in TABLES.values())  # noqa: S608
        return sum(found for ((found,),) in counts)

    def read_first(self, max_rows: int) -> list[Row]:
        """Return some rows of one kind, or an empty list. Blocks are large, so they come one at a time."""
        for kind, table in TABLES.items():
            limit = 1 if kind is Block else max_rows
            query = f"SELECT {_COLUMNS[kind]} FROM {table.name} LIMIT {limit}"  # noqa: S608
            found = self._connection.execute(query).fetchall()
            if found:
                rows = [kind._make(row) for row in found]  # type: ignore[attr-defined]
                if "degraded" in table.columns:
                    rows = [row._replace(degraded=bool(row.degraded)) for row in rows]
                return rows
        return []

    def remove(self, rows: Sequence[Row]) -> int:
        """Delete rows by their ids in one transaction; returns how many existed. Raises as `commit`."""
        removed = 0
        with self._transaction(0):
            for kind, some in group_by_kind(rows):
                keys = [column.name for column in TABLES[kind].primary_key]  # The first fields of a row.
                removed += self._connection.executemany(
                    f"DELETE FROM {TABLES[kind].name} WHERE {' AND '.join(f'{key} = ?' for key in keys)}",  # noqa: S608
                    [row[: len(keys)] for row in some],
                ).rowcount
        self._pages += _PAGES_PER_COMMIT + len(rows)
        return removed

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Run statements in one transaction; raises as `commit`."""
        if not self._is_in_place():
            raise FileLost(self._loss)
        before = self._connection.total_changes
        with self._transaction(0):
            yield self._connection
        self._pages += _PAGES_PER_COMMIT + self._connection.total_changes - before

    @property
    def total_changes(self) -> int:
        """Number of rows that this process has written to the file."""
        return self._connection.total_changes

    def release_pages(self, pages: int) -> int:
        """Return some unused pages to the disk; returns how many pages are still unused.

        Files of older versions of this package keep their unused pages for new rows.
        """
        with self.change() as connection:
            for _ in range(pages):  # Python's driver ends this statement after one page, whatever its argument.
                connection.execute("PRAGMA incremental_vacuum(1)")
            self._pages += pages
            ((unused,),) = connection.execute("PRAGMA freelist_count").fetchall()
            ((mode,),) = connection.execute("PRAGMA auto_vacuum").fetchall()
        return int(unused) if mode else 0

    def unused_share(self) -> float:
        """Return the share of the file's pages that are unused."""
        ((unused,),) = self._connection.execute("PRAGMA freelist_count").fetchall()
        ((pages,),) = self._connection.execute("PRAGMA page_count").fetchall()
        return float(unused) / max(int(pages), 1)

    def vacuum(self) -> None:
        """Rebuild the file without unused pages. Takes seconds per gigabyte; nobody else may use the file."""
        try:
            self._connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            self._connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise _classify_error(error) from None

    def empty_journal(self) -> bool:
        """Move the journal's content into the file and truncate the journal; returns False while a reader uses it."""
        if not self._is_in_place():
            raise FileLost(self._loss)
        try:
            ((busy, *_),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise _classify_error(error) from None
        self._pages, self._bytes = 0, self.path.stat().st_size
        return not busy

    @property
    def wants_checkpoint(self) -> bool:
        """Whether enough was written since the last checkpoint."""
        return self._pages >= CHECKPOINT_PAGES

    def sync_journal(self) -> None:
        """Flush the journal to disk. This is half of a checkpoint's time, and others may commit meanwhile."""
        with suppress(OSError):
            (os.fdatasync if sys.platform == "linux" else os.fsync)(self._journal_fd)

    def checkpoint(self) -> None:
        """Move the journal's content into the database file."""
        self._pages = 0
        if not self._is_in_place():
            return  # The next commit raises.
        # Only for speed: the next checkpoint makes up for a failed one, and the rows are safe in the journal.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        try:
            self._bytes, index = self.path.stat().st_size, self._index.stat().st_ino
        except OSError:
            index = -1
        if index != self._index_inode:  # Readers would not see what is written.
            self._mark_lost("'s journal was deleted or moved")

    def close(self) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        self._connection.close()
        if self._journal_fd >= 0:
            os.close(self._journal_fd)
            self._journal_fd = -1

    def _is_in_place(self) -> bool:
        """Whether the path leads to the committed rows; sets `_loss` if not. Takes 5 to 9 µs."""
        if self._loss:
            return False
        try:
            # `Path.stat` would add a third to the time of this check.
            file, journal = os.stat(self._names[0]), os.stat(self._names[1])  # noqa: PTH116
        except OSError as error:
            part = "" if error.filename == self._names[0] else "'s journal"
            return self._mark_lost(f"{part} was deleted or moved ({error.strerror})")
        if (file.st_dev, file.st_ino, journal.st_ino) != self._identity:
            part = "'s journal" if (file.st_dev, file.st_ino) == self._identity[:2] else ""
            return self._mark_lost(f"{part} was replaced by another file")
        if os.pread(self._journal_fd, 4, 0) not in JOURNAL_STARTS:
            return self._mark_lost("'s journal was truncated", is_overwritten=True)
        if file.st_size < self._bytes and not self._was_vacuumed(file.st_size):
            return self._mark_lost(" was truncated or overwritten", is_overwritten=True)
        return True

    def _mark_lost(self, how: str, is_overwritten: bool = False) -> Literal[False]:
        self._loss = f"{self.path.name}{how} while it was open"
        self._is_overwritten = is_overwritten
        return False

    def _was_vacuumed(self, size: int) -> bool:
        """Whether another connection shrank the file through SQLite (VACUUM)."""
        try:
            ((pages,),) = self._connection.execute("PRAGMA page_count").fetchall()
            ((page_bytes,),) = self._connection.execute("PRAGMA page_size").fetchall()
        except sqlite3.Error:
            return False
        if pages * page_bytes >= self._bytes:
            return False
        self._bytes = size
        return True

    def _abandon(self) -> None:
        """Close a lost file, and save its journal's content if that is safe."""
        with suppress(sqlite3.Error, OSError):
            if self._is_overwritten:
                # Closing would mix the journal's pages with the pages of the new file.
                os.ftruncate(self._journal_fd, 0)
            else:
                # This completes a file that was moved.
                self._connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._close()

    @contextmanager
    def _transaction(self, busy_ms: int) -> Iterator[None]:
        run = self._connection.execute
        if busy_ms:
            run(f"PRAGMA busy_timeout={busy_ms}")
        try:
            run("BEGIN IMMEDIATE")
            try:
                yield
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _classify_error(error) from None
        finally:
            if busy_ms:
                run("PRAGMA busy_timeout=0")


class ClaimedSQLiteStore(SQLiteStore):
    """The SQLite file of one process in a folder. If the file is lost, the process continues in another one.

    Args:
        folder: the folder, created if absent.
        role: name of the process's role; the file is the first of `<role>-0.db`, `<role>-1.db`, … that no living
            process holds.
        synchronous: as in `SQLiteStore`.
        max_bytes: as in `SQLiteStore`.

    Attributes:
        losses: number of lost files.

    Raises:
        ConfigError: the folder cannot be used, or a newer version of this package wrote the file.
    """

    def __init__(self, folder: Path, role: str, synchronous: str, max_bytes: int = 0) -> None:
        self._folder = folder
        self._role = role
        self.losses = 0
        path, self._claim = acquire_file(folder, role)
        try:
            super().__init__(path, synchronous, max_bytes)
        except BaseException:
            self._claim.release()
            raise

    def commit(self, rows: Sequence[Row], busy_ms: int = 0) -> None:
        """As in `SQLiteStore`, but with `busy_ms` a lost file is replaced first."""
        try:
            super().commit(rows, busy_ms)
        except FileLost:
            if not busy_ms:
                raise
            self._replace()
            super().commit(rows, busy_ms)

    def probe(self) -> None:
        """As in `SQLiteStore`, but a lost file is replaced first."""
        try:
            super().probe()
        except FileLost:
            self._replace()

    def ensure_in_place(self) -> None:
        """Replace the file if it was lost. Otherwise this takes a few µs. Raises as `commit`."""
        if not self._is_in_place():
            self._replace()

    def close(self) -> None:
        """Close the file and release it for other processes."""
        super().close()
        self._claim.release()

    def _replace(self) -> None:
        # Under another name, because the old file may be in the middle of being deleted or restored.
        held, loss = self._claim, self._loss
        self._abandon()
        try:
            path, self._claim = acquire_file(self._folder, self._role)
            self._open(path)
        except ConfigError as error:
            raise Unavailable(str(error)) from None
        finally:
            held.release()
        self.losses += 1
        message = "%s; rows acknowledged before may be lost with it, new rows go to %s"
        logging.getLogger(__name__).error(message, loss, self.path.name)


def _classify_error(error: sqlite3.Error) -> Exception:
    """Return `Unavailable` if the file is the cause, or the error itself if the rows are."""
    # Two subclasses of DatabaseError concern the file; the others concern the rows or the query.
    is_ours = type(error) is sqlite3.DatabaseError or isinstance(
        error, sqlite3.OperationalError | sqlite3.InternalError
    )
    return Unavailable(str(error)) if is_ours else error


class PostgresStore:
    """A PostgreSQL database. Thread-safe.

    Commits are idempotent: a row that exists already is not an error. If the answer to a commit was lost, the caller
    commits the same rows again.

    Args:
        url: URL of the database.
        allow_unavailable: whether the database may be unreachable at the start.
    """

    wants_checkpoint = False

    def __init__(self, url: str, allow_unavailable: bool = False) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name != "postgresql":
            raise ConfigError("ML_PREDICTION_LOG: give a folder, or the address of a PostgreSQL database")
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._errors: Any = self._engine.dialect.loaded_dbapi
        self._idle: list[sa.Connection] = []
        self._timeout = QueryTimeout(TRANSACTION_SECONDS)
        self._has_schema = False
        try:
            with translate_errors(self._engine):
                self._ensure_schema()
        except ConfigError as error:
            if not (allow_unavailable and isinstance(error.__context__, sa.exc.OperationalError)):
                self.close()
                raise

    def commit(self, rows: Sequence[Row], _: int = 0) -> None:
        """Commit rows in one transaction.

        Raises:
            Unavailable: the database is unavailable, or the answer to the commit was lost.
            LabelConflict: predictions have a different label.
        """
        with self._classify_errors():
            self._ensure_schema()
            if self._engine.dialect.driver != "psycopg" or not self._try_copy(rows):
                self._insert(rows)

    def probe(self) -> None:
        """Test whether rows can be committed, by a transaction that changes none; raises as `commit`."""
        with self._classify_errors():
            self._ensure_schema()
            with self._engine.begin() as connection, self._timeout.guard(connection.connection.driver_connection):
                connection.execute(sa.update(versions).values(version=versions.c.version))

    def sync_journal(self) -> None:
        """Nothing to do."""

    def checkpoint(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the connections."""
        self._timeout.close()
        self._reset_pool()

    def _ensure_schema(self) -> None:
        if not self._has_schema:
            ensure_schema(self._engine)
            self._has_schema = True

    def _try_copy(self, rows: Sequence[Row]) -> bool:
        """Insert new rows by COPY, the fastest way; returns False if some rows exist or the connection was lost."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._autocommit.connect()
        driver: Any = connection.connection.driver_connection
        kinds = list(group_by_kind(rows))
        try:
            # A single statement is its own transaction, which saves two round trips.
            with self._timeout.guard(driver), nullcontext() if len(kinds) == 1 else driver.transaction():
                for kind, some in kinds:
                    with driver.cursor() as cursor, cursor.copy(_COPIES[kind]) as copy:
                        for row in some:
                            copy.write_row(row)
        except Exception as error:
            connection.invalidate()
            connection.close()
            if isinstance(error, self._errors.IntegrityError):
                return False
            if isinstance(error, TimeoutError) or not driver.closed:
                raise
            # The server may have restarted since the last query; then all connections are lost.
            self._reset_pool()
            return False
        self._idle.append(connection)
        return True

    def _reset_pool(self) -> None:
        with suppress(IndexError):
            while connection := self._idle.pop():
                connection.invalidate()
                connection.close()
        self._engine.dispose()

    def _insert(self, rows: Sequence[Row]) -> None:
        with self._engine.begin() as connection, self._timeout.guard(connection.connection.driver_connection):
            for kind, some in group_by_kind(rows):
                insert = postgresql.insert(TABLES[kind]).on_conflict_do_nothing()
                connection.execute(insert, [row._asdict() for row in some])
                if kind in (Outcome, EntityOutcome, MetricValue):
                    _check_label_conflicts(connection, some)

    @contextmanager
    def _classify_errors(self) -> Iterator[None]:
        """Raise `Unavailable` for errors of the database; errors of the rows pass unchanged."""
        try:
            yield
        except TimeoutError as error:
            raise Unavailable(str(error)) from error
        except (sa.exc.DBAPIError, self._errors.Error) as error:
            cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            if isinstance(cause, self._errors.IntegrityError | self._errors.DataError | self._errors.ProgrammingError):
                raise
            # Lines after the first may repeat a row, which belongs to the caller.
            raise Unavailable(str(cause).partition("\n")[0]) from error


def _check_label_conflicts(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Compare labels with those in the database, which keeps the first."""
    by_id = {row.prediction_id: row.label for row in rows if isinstance(row, Outcome)}
    query = sa.select(labels.c.prediction_id, labels.c.label).where(labels.c.prediction_id.in_(by_id))
    others = [name for name, label in connection.execute(query) if label != by_id[name]] if by_id else []
    by_key = {row.key: row.label for row in rows if isinstance(row, EntityOutcome)}
    found = sa.select(entity_labels).where(entity_labels.c.entity_id.in_({entity for entity, _ in by_key}))
    stored = map(EntityOutcome._make, connection.execute(found) if by_key else ())
    others += [row.entity_id for row in stored if by_key.get(row.key, row.label) != row.label]
    by_metric = {row.key: row.value for row in rows if isinstance(row, MetricValue)}
    known = sa.select(metric_values).where(metric_values.c.prediction_id.in_({name for name, _ in by_metric}))
    values = map(MetricValue._make, connection.execute(known) if by_metric else ())
    others += [row.prediction_id for row in values if by_metric.get(row.key, row.value) != row.value]
    if others:
        raise LabelConflict(others)


def acquire_file(folder: Path, role: str) -> tuple[Path, filelock.BaseFileLock]:
    """Lock a SQLite file for this process; the operating system releases the lock when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"ML_PREDICTION_LOG: the folder '{folder}' cannot be created: {error.strerror}") from None
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
