"""Readers read old schemas unmigrated; writers migrate them in place, atomically."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flywheel_ml.prediction_log import (
    Block,
    EntityOutcome,
    Job,
    Outcome,
    Prediction,
    Reader,
    Row,
    Spool,
    Writer,
    database_engine,
    migrations,
    new_block_ids,
    new_id,
)
from flywheel_ml.prediction_log.rows import SCHEMA_VERSION, predictions, versions
from flywheel_ml.utils.errors import ConfigError
from library.helpers import postgresql

OLD = """
CREATE TABLE schema_version (version INTEGER PRIMARY KEY);
CREATE TABLE predictions (id VARCHAR(32) NOT NULL, at_us BIGINT NOT NULL, entity TEXT, variant TEXT NOT NULL,
    model_version TEXT NOT NULL, inputs TEXT NOT NULL, output TEXT NOT NULL, score FLOAT NOT NULL,
    latency_us INTEGER NOT NULL, degraded BOOLEAN NOT NULL, PRIMARY KEY (id));
CREATE INDEX ix_predictions_at_us ON predictions (at_us);
CREATE TABLE labels (prediction_id VARCHAR(32) NOT NULL, at_us BIGINT NOT NULL, label TEXT NOT NULL,
    PRIMARY KEY (prediction_id));
CREATE TABLE jobs (id VARCHAR(32) NOT NULL, at_us BIGINT NOT NULL, model_version TEXT NOT NULL, input TEXT NOT NULL,
    output TEXT NOT NULL, rows BIGINT NOT NULL, seconds FLOAT NOT NULL, PRIMARY KEY (id));
"""
"""What schema 1 had."""
BLOCKS = """
CREATE TABLE blocks (id VARCHAR(32) NOT NULL, at_us BIGINT NOT NULL, rows INTEGER NOT NULL, "key" TEXT,
    variant TEXT NOT NULL, model_version TEXT NOT NULL, inputs BLOB NOT NULL, outputs BLOB NOT NULL,
    latency_us INTEGER NOT NULL, degraded BOOLEAN NOT NULL, PRIMARY KEY (id));
CREATE INDEX ix_blocks_at_us ON blocks (at_us);
"""
"""What schema 2 added."""
THIRD = """
CREATE TABLE schema_version (version INTEGER PRIMARY KEY);
CREATE TABLE predictions (id VARCHAR(32) NOT NULL, timestamp_us BIGINT NOT NULL, entity_id TEXT,
    event_timestamp_us BIGINT, variant TEXT NOT NULL, model_version TEXT NOT NULL, model_digest VARCHAR(64),
    inputs TEXT NOT NULL, output TEXT NOT NULL, score FLOAT NOT NULL, latency_us INTEGER NOT NULL,
    degraded BOOLEAN NOT NULL, PRIMARY KEY (id));
CREATE INDEX ix_predictions_timestamp_us ON predictions (timestamp_us);
CREATE TABLE labels (prediction_id VARCHAR(32) NOT NULL, timestamp_us BIGINT NOT NULL, label TEXT NOT NULL,
    PRIMARY KEY (prediction_id));
CREATE TABLE jobs (id VARCHAR(32) NOT NULL, timestamp_us BIGINT NOT NULL, model_version TEXT NOT NULL,
    model_digest VARCHAR(64), input TEXT NOT NULL, output TEXT NOT NULL, rows BIGINT NOT NULL, seconds FLOAT NOT NULL,
    PRIMARY KEY (id));
CREATE TABLE blocks (id VARCHAR(32) NOT NULL, timestamp_us BIGINT NOT NULL, rows INTEGER NOT NULL, entity_column TEXT,
    event_timestamp_column TEXT, variant TEXT NOT NULL, model_version TEXT NOT NULL, model_digest VARCHAR(64),
    inputs BLOB NOT NULL, outputs BLOB NOT NULL, latency_us INTEGER NOT NULL, degraded BOOLEAN NOT NULL,
    PRIMARY KEY (id));
CREATE INDEX ix_blocks_timestamp_us ON blocks (timestamp_us);
"""
"""What schema 3 had."""
FOURTH = (
    THIRD
    + """
ALTER TABLE labels ADD COLUMN arrived_us BIGINT;
CREATE TABLE entity_labels (entity_id TEXT NOT NULL, timestamp_us BIGINT NOT NULL, label TEXT NOT NULL,
    arrived_us BIGINT, PRIMARY KEY (entity_id, timestamp_us));
CREATE INDEX ix_entity_labels_timestamp_us ON entity_labels (timestamp_us);
"""
)
"""What schema 4 had."""
DIGEST = "d" * 64
INPUTS, OUTPUTS = b'{"key":["b","c"]}', b'{"score":[0.5,0.5],"told":[{},{}]}'

ALONE = Prediction(new_id(), 10, "a", None, "champion", "1", None, '{"x":1}', "{}", 0.25, 900, False)
BLOCK = Block(new_block_ids(1)[0], 20, 2, "key", None, "champion", "1", None, INPUTS, OUTPUTS, 800, False)
LABEL = Outcome(ALONE.id, 30, "true")
JOB = Job(new_id(), 40, "1", None, "in.csv", "out.parquet", 7, 1.5)
NEW = ("event_timestamp_us", "event_timestamp_column", "model_digest", "arrived_us", "assigned_variant")
LACKING = {1: NEW, 2: NEW, 3: NEW[-2:], 4: NEW[-1:]}
"""Schema → the columns that it lacked."""


def old_rows(version: int) -> list[Row]:
    return [ALONE, LABEL, JOB, *([BLOCK] if version > 1 else [])]


def statements(version: int, blob: str = "BLOB") -> tuple[list[str], list[tuple[str, tuple[Any, ...]]]]:
    """What the package of this schema version ran: to make its tables, and to fill them."""
    script = {1: OLD, 2: OLD + BLOCKS, 3: THIRD, 4: FOURTH}[version]
    lacking = LACKING[version]
    made = [f"INSERT INTO schema_version VALUES ({found})" for found in range(1, version + 1)]
    names = {Prediction: "predictions", Block: "blocks", Outcome: "labels", Job: "jobs"}
    rows = [
        (names[type(row)], tuple(value for name, value in row._asdict().items() if name not in lacking))
        for row in old_rows(version)
    ]
    return [*filter(str.strip, script.replace("BLOB", blob).split(";")), *made], rows


def old_file(path: Path, version: int) -> Path:
    """A file as the package of this schema version left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    made, rows = statements(version)
    connection.execute("PRAGMA journal_mode=WAL")
    for statement in made:
        connection.execute(statement)
    for table, values in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(values))})", values)
    connection.commit()
    connection.close()
    return path


def logged(target: str) -> list[Any]:
    reader = Reader(target)
    ids = [ALONE.id, BLOCK.id]
    found = list(reader.predictions())
    return [
        found,
        reader.compute_stats(),
        reader.labels(),
        reader.find_known(ids),
        reader.find(BLOCK.id),
        reader.jobs(),
    ]


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    (found,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    connection.close()
    return int(found)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_old_file_is_read_unmigrated_and_migrated_by_its_writer(tmp_path: Path, version: int) -> None:
    path = old_file(tmp_path / "serving-0.db", version)
    content = path.read_bytes()
    before = logged(str(tmp_path))
    assert path.read_bytes() == content
    first, *others = before[0]
    assert (first.prediction, first.label) == (ALONE, "true")
    assert [one.prediction.entity_id for one in others] == (["b", "c"] if version > 1 else [])
    assert before[3] == {ALONE.id, *([BLOCK.id] if version > 1 else [])}
    assert before[5] == [JOB]
    added = ALONE._replace(id=new_id(), model_digest=DIGEST, event_timestamp_us=5, assigned_variant="challenger")
    with Writer(str(tmp_path), "serving") as writer:
        assert version_of(path) == SCHEMA_VERSION
        assert logged(str(tmp_path)) == before
        writer.append([added, BLOCK._replace(id=new_block_ids(1)[0], model_digest=DIGEST)]).result(10)
        writer.append([EntityOutcome("b", 25, "false", 26), Outcome(added.id, 27, "true", 28)]).result(10)
    assert added in [one.prediction for one in Reader(str(tmp_path)).predictions()]
    labelled = {one.prediction.entity_id: one.label for one in Reader(str(tmp_path)).predictions()}
    assert labelled == {"a": "true", "b": "false", "c": None}
    assert {one.model_digest: one.rows for one in Reader(str(tmp_path)).compute_stats()} == {
        None: 3 if version > 1 else 1,
        DIGEST: 3,
    }
    with Writer(str(tmp_path), "serving"):
        assert version_of(path) == SCHEMA_VERSION


def test_digest_distinguishes_models_of_the_same_version(tmp_path: Path) -> None:
    old_file(tmp_path / "serving-0.db", 2)
    other = ALONE._replace(id=new_id(), model_digest="e" * 64)
    mine = ALONE._replace(id=new_id(), model_digest=DIGEST)
    with Writer(str(tmp_path), "serving") as writer:
        writer.append([mine, other]).result(10)

    def found(model_version: str) -> set[str]:
        rows = Reader(str(tmp_path)).predictions(model_version=model_version, model_digest=DIGEST)
        return {row.prediction.id for row in rows if row.prediction.id in {mine.id, other.id, ALONE.id}}

    assert found("1") == {mine.id, ALONE.id}
    assert found("2") == {mine.id}


KILLED = """
import os, sys
from flywheel_ml.prediction_log import Writer, migrations
migrations.metadata.create_all = lambda connection: os.kill(os.getpid(), 9)
Writer(sys.argv[1], "serving")
"""


def test_killed_migration_leaves_the_old_file(tmp_path: Path) -> None:
    path = old_file(tmp_path / "serving-0.db", 2)
    before = logged(str(tmp_path))
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == -9
    assert version_of(path) == 2
    assert logged(str(tmp_path)) == before
    with Writer(str(tmp_path), "serving"):
        assert logged(str(tmp_path)) == before


def test_reader_continues_while_its_file_is_migrated(tmp_path: Path) -> None:
    path = old_file(tmp_path / "serving-0.db", 2)
    connection = sqlite3.connect(path)
    more = [(new_id(), *[getattr(ALONE, name) for name in ALONE._fields[1:] if name not in NEW]) for _ in range(6000)]
    connection.executemany("INSERT INTO predictions VALUES (?,?,?,?,?,?,?,?,?,?)", more)
    connection.commit()
    connection.close()
    rows = Reader(str(tmp_path))._rows(predictions, sa.select)
    next(rows)
    with Writer(str(tmp_path), "serving"):
        assert version_of(path) == SCHEMA_VERSION
        assert sum(1 for _ in rows) == 6000


def test_tables_without_a_version_are_migrated(tmp_path: Path) -> None:
    connection = sqlite3.connect(old_file(tmp_path / "serving-0.db", 2))
    connection.execute("DELETE FROM schema_version")
    connection.execute("DROP TABLE jobs")
    connection.commit()
    connection.close()
    assert list(Reader(str(tmp_path)).predictions()) == []
    with Writer(str(tmp_path), "serving") as writer:
        writer.append([JOB]).result(10)
    assert len(list(Reader(str(tmp_path)).predictions())) == 3


def test_read_only_old_file_is_rejected_by_name(tmp_path: Path) -> None:
    path = old_file(tmp_path / "serving-0.db", 2)
    url = sa.URL.create("sqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    with pytest.raises(ConfigError, match=r"serving-0.db.* cannot be used: attempt to write a readonly database"):
        database_engine.open_engine(url)
    assert version_of(path) == 2


def test_rows_of_an_old_spool_are_moved(tmp_path: Path) -> None:
    old_file(tmp_path / "serving-1.db", 2)
    old_file(tmp_path / "serving-0.db", 2)
    moved: list[Row] = []

    def commit(rows: Sequence[Row]) -> None:
        moved.extend(rows)

    spool = Spool(tmp_path, "serving", "NORMAL", 10**7)
    try:
        while spool.move(commit):
            pass
        spool.move_abandoned(commit)
    finally:
        spool.close()
    assert sorted(map(str, moved)) == sorted(map(str, 2 * old_rows(2)))


@pytest.fixture(scope="module")
def postgres() -> Iterator[postgresql.PostgreSQL]:
    with postgresql.run_postgresql() as server:
        yield server


def old_database(postgres: postgresql.PostgreSQL, version: int) -> str:
    url = postgres.database()
    engine = sa.create_engine(url)
    made, rows = statements(version, "BYTEA")
    with engine.begin() as connection:
        for statement in made:
            connection.exec_driver_sql(statement)
        for table, values in rows:
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({','.join(['%s'] * len(values))})", values)
    engine.dispose()
    return url


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4])
def test_concurrent_processes_migrate_a_database_once(postgres: postgresql.PostgreSQL, version: int) -> None:
    url = old_database(postgres, version) if version else postgres.database()
    before = logged(url)
    writers: list[Writer] = []
    threads = [threading.Thread(target=lambda: writers.append(Writer(url, "serving"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(writers) == 4
    assert logged(url) == before
    for writer in writers:
        writer.append([ALONE._replace(id=new_id(), model_digest=DIGEST)]).result(10)
        writer.close()
    assert sum(one.rows for one in Reader(url).compute_stats() if one.model_digest == DIGEST) == 4
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).where(versions.c.version == SCHEMA_VERSION)) == 1
    engine.dispose()


def test_database_migration_waits_for_readers(postgres: postgresql.PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    url = old_database(postgres, 2)
    rows = Reader(url)._rows(predictions, sa.select)
    next(rows)
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="its schema must be migrated while other processes use it; stop them"):
        Writer(url, "serving")
    rows.close()  # type: ignore[attr-defined]
    with Writer(url, "serving"):
        assert len(list(Reader(url).predictions())) == 3
