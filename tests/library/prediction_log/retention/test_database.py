"""A log in PostgreSQL, and the spool of this machine, are pruned, exported and erased like files."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from flywheel_ml.prediction_log import Reader, Spool, Writer
from flywheel_ml.prediction_log.retention import database
from flywheel_ml.prediction_log.retention.erase import erase
from flywheel_ml.prediction_log.retention.export import export
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.operations import Operation
from flywheel_ml.prediction_log.retention.prune import prune
from flywheel_ml.prediction_log.retention.stats import compute_stats
from flywheel_ml.prediction_log.rows import SCHEMA_VERSION
from flywheel_ml.utils.errors import ConfigError
from library.helpers import logs
from library.helpers.postgresql import PostgreSQL
from library.prediction_log.test_migrations import old_file, version_of

KEY, OTHER = "customer-4711", "customer-0815"


@pytest.fixture
def log(postgres: PostgreSQL, tmp_path: Path) -> Log:
    """A log with rows of two entities, old and new, and a block."""
    log = Log(postgres.database(), tmp_path / "spool", tmp_path / "exports")
    rows = [logs.make_prediction(30 if at % 2 else 1, at, KEY if at % 5 == 0 else OTHER) for at in range(1500)]
    with Writer(log.target, "serve") as writer:
        writer.append([*rows, logs.make_block(2, [OTHER, KEY, OTHER]), logs.make_block(20, [OTHER], 1)]).result(30)
        writer.append([logs.label(row) for row in rows]).result(30)
        writer.append([logs.value(row) for row in rows[:100]]).result(30)
    return log


def read_entities(log: Log) -> list[str | None]:
    return [row.prediction.entity_id for row in Reader(log.target).predictions()]


def test_database_is_pruned_in_batches(log: Log) -> None:
    done = prune(log, timedelta(days=7))
    assert (done.counts, done.failures) == (
        {"predictions": 750, "blocks": 1, "labels": 750, "metric_values": 50},
        {},
    )
    assert len(read_entities(log)) == 750 + 3
    assert len(Reader(log.target).labels()) == 750
    assert prune(log, timedelta(days=7)).until_us == 0


def test_erase_covers_database_spool_and_exports(log: Log) -> None:
    folder = export(log, lambda *_: None).folder
    spool = Spool(log.spool, "serve", "NORMAL", 10_000_000)
    spool.commit([spooled := logs.make_prediction(1, 9999, KEY), logs.make_prediction(1, 9998, OTHER)])
    done = erase(log, KEY)
    assert spool.rows == 1
    spool.close()
    assert done.failures == []
    assert done.counts == {"predictions": 301, "blocks": 1, "labels": 300, "metric_values": 20}
    assert KEY not in read_entities(log)
    assert len(read_entities(log)) == 1200 + 3
    assert logs.find_bytes(log.spool, KEY, spooled.id) == []
    assert set(pl.read_parquet(f"{folder}/untyped.parquet")["log_entity_id"]) == {OTHER}


def test_unowned_spool_is_erased(log: Log) -> None:
    spool = Spool(log.spool, "serve", "NORMAL", 10_000_000)
    spool.commit([logs.make_prediction(1, 9999, KEY)])
    spool.close()
    assert erase(log, KEY).failures == []
    assert logs.find_bytes(log.spool, KEY) == []


def test_stats_of_a_database_need_a_configured_limit(log: Log) -> None:
    found = compute_stats(log)
    assert (found.files, found.rows["predictions"], found.limit, found.days_left) == (0, 1500, None, None)
    assert compute_stats(log, 10**9).days_left


def test_statement_timeout_ends_a_job_with_one_error(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 0.3)
    engine = sa.create_engine(log.target)
    with engine.begin() as other:
        other.execute(sa.text("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(ConfigError, match="statement timeout"):
            database.change_database(log.target, Operation(kind="prune", until_us=2**60))
    engine.dispose()
    assert prune(log, timedelta(days=7)).counts["predictions"] == 750


def test_unreachable_database_is_one_error(tmp_path: Path) -> None:
    log = Log("postgresql://me@127.0.0.1:9/none", tmp_path / "spool", tmp_path / "exports")
    with pytest.raises(ConfigError, match="cannot be used"):
        prune(log, timedelta(days=7))


@pytest.mark.parametrize("version", [1, 2])
def test_old_file_is_migrated_and_pruned_or_erased(tmp_path: Path, version: int) -> None:
    for name, entity in (("pruned", ""), ("erased", "a")):
        path = old_file(tmp_path / name / "serve-0.db", version)
        log = logs.open_log(path.parent)
        if entity:
            assert erase(log, entity).counts == {"predictions": 1, "labels": 1}
        else:
            assert prune(log, timedelta(hours=1)).counts["labels"] == 1
        assert len(logs.read_ids(path.parent)) == (2 if entity and version > 1 else 0)
        assert version_of(path) == SCHEMA_VERSION


def test_repeated_prune_to_a_size_deletes_no_more(log: Log) -> None:
    # PostgreSQL keeps the space of deleted rows, so the size of its files must not decide.
    limit = int(log.measure()[1] * 0.7)
    left = []
    for _ in range(3):
        prune(log, None, limit)
        left.append(len(read_entities(log)))
    assert 0 < left[0] < 1503
    assert left[1:] == [left[0]] * 2
