"""What was predicted, and what turned out.

A prediction may be acknowledged once `Writer.commit` said yes or `Writer.append` has resolved: its row is then
committed, and a `kill -9` no longer loses it. Commits are grouped naturally: whatever queued while the last
transaction ran is the next one. There is no timer, so a lone request waits for nothing but its own commit.

In a folder, each process writes a SQLite file of its own (SQLite before 3.51.3 can lose pages when two
connections checkpoint one WAL) and readers open all files as one log. Given a database URL, all write there.
"""

import itertools
import math
import os
import queue
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import filelock
import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.dialects import sqlite

from .errors import ConfigError, ProjectError

SCHEMA_VERSION = 2
"""2 added blocks."""
MAX_VARIABLES = 10_000
"""Ids asked for in one query; SQLite takes at most 32,766."""
BUSY_MS = 5000
"""How long the background thread waits for a SQLite file that somebody locked."""
QUICK_SECONDS = 0.001
"""Where commits usually take longer, they are left to the background thread."""
SMALL = 128
"""Most rows of a commit that tells how quick commits are here."""
CHECKPOINT_PAGES = 4000
"""About how much of SQLite's journal is written before its pages go to their places: 16 MB."""

SHADOW = "shadow"
"""The variant of rows that were logged beside an answer and sent to nobody."""

_IN_BLOCK = re.compile(r"[0-9a-f]{32}")
_READ_ONLY = {"mode": "ro", "uri": "true"}

metadata = sa.MetaData()

versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))

predictions = sa.Table(
    "predictions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("entity", sa.Text),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("latency_us", sa.Integer, nullable=False),
    sa.Column("degraded", sa.Boolean, nullable=False),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("prediction_id", sa.String(32), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
)


blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("inputs", sa.LargeBinary, nullable=False),
    sa.Column("outputs", sa.LargeBinary, nullable=False),
    sa.Column("latency_us", sa.Integer, nullable=False),
    sa.Column("degraded", sa.Boolean, nullable=False),
)


class Prediction(NamedTuple):
    """One logged prediction; `inputs` and `output` are JSON texts."""

    id: str
    at_us: int
    entity: str | None
    variant: str
    model_version: str
    inputs: str
    output: str
    score: float
    latency_us: int
    degraded: bool


class Block(NamedTuple):
    """The predictions of one request in Arrow, read back one by one; see `blocks.py` for `inputs` and `outputs`.

    `id` is that of its first row; the others count on in the last eight digits. `key` names the column of entities.
    """

    id: str
    at_us: int
    rows: int
    key: str | None
    variant: str
    model_version: str
    inputs: bytes
    outputs: bytes
    latency_us: int
    degraded: bool

    @property
    def pages(self) -> int:
        """About how many of SQLite's pages its columns fill."""
        return (len(self.inputs) + len(self.outputs)) // 4096


class Outcome(NamedTuple):
    """What turned out for one prediction; `label` is a JSON text."""

    prediction_id: str
    at_us: int
    label: str


class Job(NamedTuple):
    """One batch job; the file it wrote is the log of its rows."""

    id: str
    at_us: int
    model_version: str
    input: str
    output: str
    rows: int
    seconds: float


Row = Prediction | Block | Outcome | Job
_TABLES: dict[type, sa.Table] = {Prediction: predictions, Block: blocks, Outcome: labels, Job: jobs}
_INSERTS = {
    kind: str(sa.insert(table).compile(dialect=sqlite.dialect(paramstyle="qmark"))) for kind, table in _TABLES.items()
}


class Tally(NamedTuple):
    """What one model did in one variant; `mean_score` is of the rows that were logged one by one, NaN without any."""

    variant: str
    model_version: str
    rows: int
    degraded: int
    mean_score: float
    mean_latency_us: float
    last_us: int


class Logged(NamedTuple):
    """A prediction read back, with its label (a JSON text) where one has arrived."""

    prediction: Prediction
    label: str | None


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def new_id() -> str:
    """32 hex digits that sort by time of creation: 48 bits of milliseconds, 80 random ones."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """So many of them, made at one moment."""
    moment_ms, drawn = f"{time.time_ns() // 1_000_000:012x}", secrets.token_hex(10 * count)
    return [moment_ms + drawn[at : at + 20] for at in range(0, 20 * count, 20)]


def block_ids(count: int) -> list[str]:
    """Ids of a block's rows: like `new_ids`, but they share all digits save the last eight, which count from 0."""
    shared = new_id()[:-_COUNTER]
    return [f"{shared}{at:08x}" for at in range(count)]


def moment(at_us: int) -> datetime:
    """A log time as an aware datetime."""
    return datetime.fromtimestamp(at_us / 1e6, tz=UTC)


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
        self._store: _File | _Database
        if "://" in target:
            self._store = _Database(target)
        else:
            path, self._claim = _claim(Path(target), role)
            try:
                self._store = _File(path, synchronous)
            except BaseException:
                self._claim.release()
                raise
        self._is_local = isinstance(self._store, _File)
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


class _File:
    """One SQLite file, written through the driver itself: SQLAlchemy's part would cost more than SQLite's."""

    def __init__(self, path: Path, synchronous: str) -> None:
        engine = _open(sa.URL.create("sqlite", database=str(path)))
        with _explained(engine):
            engine.dispose()
        # Autocommit: transactions begin where it is said. Threads take turns by the writer's lock.
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        # A checkpoint waits for the disk, so it is made when the background thread has time for it.
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "wal_autocheckpoint=0"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._pages = 0

    def commit(self, rows: Sequence[Row], busy_ms: int = 0) -> None:
        run = self._connection.execute
        if busy_ms:
            run(f"PRAGMA busy_timeout={busy_ms}")
        try:
            run("BEGIN IMMEDIATE")
            try:
                for kind, some in _by_kind(rows):
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
        return self._pages >= CHECKPOINT_PAGES

    def checkpoint(self) -> None:
        self._pages = 0
        # It is for speed alone: one that fails now is made up for by the next, and the rows are safe where they are.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        self._connection.close()


class _Database:
    """A database that looks after itself."""

    wants_checkpoint = False

    def __init__(self, url: str) -> None:
        self._engine = _open(url)

    def commit(self, rows: Sequence[Row], _: int = 0) -> None:
        with self._engine.begin() as connection:
            for kind, some in _by_kind(rows):
                connection.execute(sa.insert(_TABLES[kind]), [row._asdict() for row in some])

    def checkpoint(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        self._engine.dispose()


_PAGES_OF_A_COMMIT = 3
_COUNTER = 8
"""Digits of a block's id that count its rows."""


def _by_kind(rows: Sequence[Row]) -> Iterator[tuple[type, Sequence[Row]]]:
    kinds = set(map(type, rows))
    if len(kinds) == 1:
        yield kinds.pop(), rows
        return
    for kind in kinds:
        yield kind, [row for row in rows if type(row) is kind]


class Reader:
    """Reads a whole log, all files of a folder as one. Never writes.

    Raises:
        ConfigError: a file was written by a newer version of this package.
    """

    def __init__(self, target: str) -> None:
        self._target = target

    def predictions(
        self,
        since_us: int = 0,
        until_us: int | None = None,
        model_version: str | None = None,
        variant: str | None = None,
    ) -> Iterator[Logged]:
        """Predictions with since ≤ time < until, in the order of each file, joined with their labels.

        What a shadow said was nobody's answer, and is left out unless `variant` asks for it.
        A label may stand in another file than its prediction; they are looked up in step, so that memory stays flat.
        Blocks follow what was logged row by row.

        Raises:
            ConfigError: there are blocks, and pyarrow is not installed.
        """

        def asked(table: sa.Table) -> sa.Select[Any]:
            query = sa.select(table).where(table.c.at_us >= since_us).order_by(table.c.id)
            if until_us is not None:
                query = query.where(table.c.at_us < until_us)
            if model_version is not None:
                query = query.where(table.c.model_version == model_version)
            return query.where(table.c.variant != SHADOW if variant is None else table.c.variant == variant)

        of_blocks = (one for row in self._rows(asked(blocks), 2) for one in _unpacked(Block._make(row)))
        found = itertools.chain(map(Prediction._make, self._rows(asked(predictions))), of_blocks)
        while some := list(itertools.islice(found, MAX_VARIABLES)):
            outcomes = self.labels([prediction.id for prediction in some])
            yield from (Logged(prediction, outcomes.get(prediction.id)) for prediction in some)

    def tallies(self, since_us: int = 0) -> list[Tally]:
        """Counts of each variant and version from a moment on, shadows included, by variant and version."""
        found: dict[tuple[str, str], list[Tally]] = {}
        for table, count, version in ((predictions, sa.literal(1), 1), (blocks, blocks.c.rows, 2)):
            # What a block's rows scored lies packed within it, and counts for nothing here.
            scores = sa.func.avg(table.c.score) if table is predictions else sa.null()
            query = (
                sa.select(
                    table.c.variant,
                    table.c.model_version,
                    sa.func.sum(count),
                    sa.func.sum(sa.cast(table.c.degraded, sa.Integer) * count),
                    scores,
                    sa.func.sum(table.c.latency_us * count),
                    sa.func.max(table.c.at_us),
                )
                .where(table.c.at_us >= since_us)
                .group_by(table.c.variant, table.c.model_version)
            )
            for variant, model, rows, degraded, score, latency, last in self._rows(query, version):
                mean = math.nan if score is None else float(score)
                part = Tally(variant, model, int(rows), int(degraded), mean, float(latency) / int(rows), last)
                found.setdefault((variant, model), []).append(part)
        return [_together(found[key]) for key in sorted(found)]

    def labels(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Prediction id → label (a JSON text); of all, or of the ids given."""
        query = sa.select(labels.c.prediction_id, labels.c.label)
        if ids is None:
            return dict(self._rows(query))
        return {
            found: label
            for some in _batches(ids)
            for found, label in self._rows(query.where(labels.c.prediction_id.in_(some)))
        }

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are predictions in the log."""
        query = sa.select(predictions.c.id)
        found = {found for some in _batches(ids) for (found,) in self._rows(query.where(predictions.c.id.in_(some)))}
        return found | self._in_blocks([one for one in ids if one not in found and _IN_BLOCK.fullmatch(one)])

    def _in_blocks(self, ids: Sequence[str]) -> set[str]:
        first = {one: one[:-_COUNTER] + "0" * _COUNTER for one in ids}
        query = sa.select(blocks.c.id, blocks.c.rows)
        sizes = {
            found: rows
            for some in _batches(sorted(set(first.values())))
            for found, rows in self._rows(query.where(blocks.c.id.in_(some)), 2)
        }
        return {one for one in ids if int(one[-_COUNTER:], 16) < sizes.get(first[one], 0)}

    def jobs(self) -> list[Job]:
        """All batch jobs, oldest first."""
        return sorted((Job._make(row) for row in self._rows(sa.select(jobs))), key=lambda job: job.at_us)

    def _rows(self, query: sa.Select[Any], version: int = 1) -> Iterator[Any]:
        for engine in self._engines(version):
            try:
                with _explained(engine), engine.connect() as connection:
                    yield from connection.execution_options(yield_per=5000).execute(query)
            finally:
                engine.dispose()

    def _engines(self, version: int) -> Iterator[sa.Engine]:
        urls: list[str | sa.URL] = [self._target]
        if "://" not in self._target:
            paths = sorted(Path(self._target).glob("*.db"))
            urls = [sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query=_READ_ONLY) for path in paths]
        for engine in map(_engine, urls):
            if _version(engine) >= version:
                yield engine


def _together(parts: Sequence[Tally]) -> Tally:
    rows = sum(part.rows for part in parts)
    scored = [part for part in parts if not math.isnan(part.mean_score)]
    weight = sum(part.rows for part in scored)
    return parts[0]._replace(
        rows=rows,
        degraded=sum(part.degraded for part in parts),
        mean_score=sum(part.mean_score * part.rows for part in scored) / weight if weight else math.nan,
        mean_latency_us=sum(part.mean_latency_us * part.rows for part in parts) / rows,
        last_us=max(part.last_us for part in parts),
    )


def _unpacked(block: Block) -> Iterator[Prediction]:
    from .blocks import rows

    try:
        for row in rows(block.inputs, block.outputs, block.key):
            entity = None if row.key is None else str(row.key)
            yield Prediction(
                row.id,
                block.at_us,
                entity,
                block.variant,
                block.model_version,
                row.inputs,
                row.output,
                row.score,
                block.latency_us,
                block.degraded,
            )
    except ImportError:
        raise ConfigError(
            "the prediction log holds requests in Arrow, and pyarrow is not installed; install the extra 'arrow'"
        ) from None


def dumps(content: Mapping[str, Any]) -> str:
    """JSON text as the log stores it."""
    return to_json(content).decode()


def _claim(folder: Path, role: str) -> tuple[Path, filelock.BaseFileLock]:
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


def _engine(url: str | sa.URL) -> sa.Engine:
    try:
        return sa.create_engine(url)
    except (sa.exc.ArgumentError, ImportError) as error:
        # Without the address, which may hold a password.
        raise ConfigError(f"ML_PREDICTION_LOG: no database can be opened by this address ({error})") from None


def _open(url: str | sa.URL) -> sa.Engine:
    engine = _engine(url)
    if _version(engine) < SCHEMA_VERSION:
        with _explained(engine):
            _create(engine)
    return engine


def _create(engine: sa.Engine) -> None:
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(sa.insert(versions), {"version": SCHEMA_VERSION})
    except sa.exc.DBAPIError:
        # Another process that shares this database may have been quicker.
        if _version(engine) < SCHEMA_VERSION:
            raise


def _version(engine: sa.Engine) -> int:
    """Schema version found; 0 in an empty database."""
    with _explained(engine), engine.connect() as connection:
        if not sa.inspect(connection).has_table(versions.name):
            return 0
        found = connection.scalar(sa.select(sa.func.max(versions.c.version))) or 0
    if found > SCHEMA_VERSION:
        raise ConfigError(
            f"prediction log {_shown(engine)} has schema version {found}, "
            f"this package knows {SCHEMA_VERSION}; update the package"
        )
    return int(found)


@contextmanager
def _explained(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise ConfigError(f"prediction log {_shown(engine)} cannot be used: {error.orig}") from None


def _shown(engine: sa.Engine) -> str:
    # Its query may hold a password as well.
    return engine.url.set(query={}).render_as_string(hide_password=True)


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[at : at + MAX_VARIABLES] for at in range(0, len(ids), MAX_VARIABLES))
