"""An erasure removes every trace of an entity, whoever owns the files and whoever is killed, and says what remains."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import filelock
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_ml.prediction_log import Block, Prediction, Reader, now_us
from flywheel_ml.prediction_log.retention import copies, requests, tombstones
from flywheel_ml.prediction_log.retention.erase import JOURNAL, erase, resume
from flywheel_ml.prediction_log.retention.export import export
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.prune import prune
from flywheel_ml.prediction_log.spool import REJECTED_FILE
from flywheel_ml.utils.errors import Busy, ConfigError
from library.helpers import logs
from library.prediction_log.retention.conftest import StartAndKill

KEY, OTHER = "customer-4711", "customer-0815"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A process that owns a file of the log, as a server does."""
    process = logs.hold_file(folder)
    try:
        yield
    finally:
        process.communicate()


def fill(folder: Path) -> tuple[Log, list[Prediction], Block]:
    """Write rows of two entities to two files, labelled in the other file, and a block of both."""
    rows = [logs.make_prediction(20 - at / 10, at, KEY if at % 5 == 0 else OTHER) for at in range(100)]
    block = logs.make_block(3, [OTHER, KEY, OTHER])
    outcomes = [logs.label(row) for row in rows]
    in_block = [logs.label(block.id[:-1] + str(at)) for at in range(3)]
    log = logs.write(folder, [*rows[:50], *outcomes[50:], *in_block], [*rows[50:], *outcomes[:50], block])
    return log, rows, block


def test_erase_removes_rows_labels_and_bytes(folder: Path) -> None:
    log, rows, block = fill(folder)
    done = erase(log, KEY)
    kept = {row.id for row in rows if row.entity_id == OTHER} | {block.id, block.id[:-1] + "2"}
    assert logs.read_ids(folder) == kept
    assert Reader(str(folder)).labels().keys() == kept
    gone = [row.id for row in rows if row.entity_id == KEY]
    assert logs.find_bytes(folder, KEY, *gone) == []
    assert (done.counts["predictions"], done.counts["labels"], done.failures) == (20, 21, [])
    assert done.outside


def test_erased_block_keeps_the_other_rows_and_their_ids(folder: Path) -> None:
    log, _, block = fill(folder)
    before = {row.prediction.id: row.prediction for row in Reader(str(folder)).predictions()}
    erase(log, KEY)
    found = Reader(str(folder))
    assert found.find(block.id[:-1] + "1") is None
    assert found.find(block.id[:-1] + "2") == before[block.id[:-1] + "2"]
    assert found.find_known([block.id]) == {block.id}


def test_owner_erases_its_own_file(folder: Path) -> None:
    log, rows, _ = fill(folder)
    with held(folder):
        done = erase(log, KEY)
        # While the owner lives: its journal must not hold the bytes either.
        assert logs.find_bytes(folder, KEY, *(row.id for row in rows if row.entity_id == KEY)) == []
    assert done.failures == []


def test_prune_then_erase_leaves_no_bytes(folder: Path) -> None:
    log, rows, _ = fill(folder)
    with held(folder):
        prune(log, timedelta(days=15))
        erase(log, KEY)
        assert logs.find_bytes(folder, KEY, *(row.id for row in rows if row.entity_id == KEY)) == []


def test_erase_rebuilds_a_file_with_remains(folder: Path) -> None:
    log, rows, _ = fill(folder)
    for name in ("serve-0.db", "serve-1.db"):  # As an older version or the shell of SQLite deletes.
        with sqlite3.connect(folder / name, isolation_level=None) as old:
            old.execute("PRAGMA auto_vacuum=NONE")
            old.execute("VACUUM")
            old.execute("PRAGMA secure_delete=OFF")
            old.execute(
                "DELETE FROM predictions WHERE entity_id = ? AND timestamp_us < ?", (KEY, rows[30].timestamp_us)
            )
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert logs.find_bytes(folder, *(row.id for row in rows[:30] if row.entity_id == KEY))
    done = erase(log, KEY)
    assert logs.find_bytes(folder, KEY) == []
    assert done.failures == []


def test_erase_reports_an_old_file_that_a_server_holds(folder: Path) -> None:
    log, *_ = fill(folder)
    with sqlite3.connect(folder / "serve-0.db", isolation_level=None) as old:
        old.execute("PRAGMA auto_vacuum=NONE")
        old.execute("VACUUM")
    with held(folder):
        done = erase(log, KEY)
    assert any("serve-0.db, which an older version created" in line for line in done.outside)


def test_erase_changes_listed_exports_and_tables(folder: Path, tmp_path: Path) -> None:
    log, *_ = fill(folder)
    first = export(log, lambda *_: None)
    second = export(log, lambda *_: None, output=tmp_path / "elsewhere" / "mine")
    table = tmp_path / "table.parquet"
    pl.DataFrame({"who": [KEY, OTHER, None], "x": [1, 2, 3]}).write_parquet(table)
    pl.DataFrame({"number": [4711, 1], "x": [1, 2]}).write_parquet(tmp_path / "numbers.parquet")
    done = erase(log, KEY, [(str(table), "who"), (str(tmp_path / "numbers.parquet"), "who")])
    for place in (first.folder, second.folder):
        assert logs.find_bytes(Path(place), KEY) == []
        assert pl.read_parquet(Path(place) / "untyped.parquet").height == 82
    assert pl.read_parquet(table)["x"].to_list() == [2, 3]
    assert sorted(done.files.values()) == [1, 21, 21]
    assert erase(log, "4711", [(str(tmp_path / "numbers.parquet"), "number")]).files


def test_unreadable_export_is_reported_and_ends_nothing(folder: Path) -> None:
    log, *_ = fill(folder)
    broken, whole = (Path(export(log, lambda *_: None).folder) for _ in range(2))
    (broken / "untyped.parquet").write_bytes(b"PAR1 no more")
    done = erase(log, KEY)
    assert len(done.failures) == 1
    assert str(broken) in done.failures[0]
    assert logs.find_bytes(folder, KEY) == logs.find_bytes(whole, KEY) == []
    (broken / "untyped.parquet").unlink()
    assert erase(log, KEY).failures == []


def test_damaged_list_of_exports_is_reported(folder: Path) -> None:
    log, *_ = fill(folder)
    export(log, lambda *_: None)
    (log.exports / "exports.json").write_text("{")
    done = erase(log, KEY)
    assert "is damaged" in done.failures[0]
    assert logs.find_bytes(log.exports, KEY) == logs.find_bytes(folder, KEY) == []


def test_reader_that_holds_the_journal_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, *_ = fill(folder)
    monkeypatch.setattr("flywheel_ml.prediction_log.retention.operations.JOURNAL_SECONDS", 0.2)
    with sqlite3.connect(f"file:{folder}/serve-0.db?mode=ro", uri=True, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM predictions").fetchall()
        done = erase(log, KEY)
        reader.execute("COMMIT")
    assert any("a reader keeps the journal" in line for line in done.failures)
    assert KEY not in {row.prediction.entity_id for row in Reader(str(folder)).predictions()}


def test_rejected_rows_of_the_spool_are_reported(folder: Path) -> None:
    log, *_ = fill(folder)
    log.spool.mkdir()
    (log.spool / REJECTED_FILE).write_text(json.dumps({"kind": "Prediction", "entity_id": KEY}) + "\nnot json\n")
    assert any(REJECTED_FILE in line for line in erase(log, KEY).failures)
    assert not any(REJECTED_FILE in line for line in erase(log, OTHER).failures)


def test_unknown_key_changes_nothing(folder: Path) -> None:
    log, rows, _ = fill(folder)
    assert erase(log, "nobody").found == 0
    assert {row.id for row in rows} <= logs.read_ids(folder)
    with pytest.raises(ConfigError, match="KEY is empty"):
        erase(log, " ")


@pytest.mark.parametrize("key", ["12", "1e3", 'Zoë "x"', "a'b", "%", "日本"])
def test_keys_of_any_form_are_found_in_blocks(folder: Path, key: str) -> None:
    log = logs.write(folder, [logs.make_block(1, ["other", key]), logs.make_block(1, [f"{key}0", "other"], 1)])
    assert erase(log, key).counts["blocks"] == 1
    assert {row.prediction.entity_id for row in Reader(str(folder)).predictions()} == {"other", f"{key}0"}


def test_interrupted_erasure_is_completed_by_the_next(folder: Path) -> None:
    log, rows, _ = fill(folder)
    place = folder / requests.FOLDER
    place.mkdir()
    # The rows are gone, their labels in another file are not: only the journal knows their ids.
    gone = [row.id for row in rows if row.entity_id == KEY]
    for name in ("serve-0.db", "serve-1.db"):
        with sqlite3.connect(folder / name, isolation_level=None) as file:
            file.execute("PRAGMA secure_delete=ON")
            file.execute("DELETE FROM predictions WHERE entity_id = ?", (KEY,))
    (place / f"{JOURNAL}1.json").write_text(json.dumps({"key": KEY, "ids": gone}))
    with requests.hold_job_lock(folder), pytest.raises(Busy):
        resume(log)
    (done,) = resume(log)
    assert done.counts["labels"] == 21
    assert logs.find_bytes(folder, KEY, *gone) == []


def test_request_of_a_killed_job_is_completed_by_the_next_owner(folder: Path) -> None:
    log, rows, _ = fill(folder)
    place = folder / requests.FOLDER
    place.mkdir()
    ids = [row.id for row in rows if row.entity_id == KEY]
    (place / "request-1.json").write_text(json.dumps({"kind": "delete", "ids": {"predictions": ids}, "scrub": True}))
    with held(folder):
        result = place / "request-1.serve-0.json"
        while not result.is_file() or not json.loads(result.read_text()).get("done"):
            pass
    assert not set(ids[:10]) & logs.read_ids(folder)
    assert logs.find_bytes(folder, *ids[:10]) == ["request-1.json"] or erase(log, KEY).failures == []


def test_labels_by_entity_are_pruned_and_erased(folder: Path) -> None:
    log, *_ = fill(folder)
    with sqlite3.connect(folder / "serve-0.db") as file:
        rows = [(entity, now_us() - days * logs.DAY_US, "1") for entity in (KEY, OTHER) for days in range(20)]
        file.executemany("INSERT INTO entity_labels (entity_id, timestamp_us, label) VALUES (?, ?, ?)", rows)
    assert prune(log, timedelta(days=10)).counts["entity_labels"] in range(16, 21)
    assert erase(log, KEY).counts["entity_labels"] in range(9, 12)
    assert logs.find_bytes(folder, KEY) == []


def test_values_of_metrics_leave_with_their_predictions(folder: Path) -> None:
    _, rows, block = fill(folder)
    of_block = [logs.value(block.id[:-1] + str(at)) for at in range(3)]
    log = logs.write(folder, [*map(logs.value, rows), *of_block, *(logs.value(row, "margin", -2.0) for row in rows)])
    old = [row.id for row in rows if row.timestamp_us < now_us() - 15 * logs.DAY_US]
    assert prune(log, timedelta(days=15)).counts["metric_values"] > 2 * (len(old) - 3) > 0  # The cut is at a full hour.
    assert erase(log, KEY).counts["metric_values"] > 0
    left = Reader(str(folder)).metric_values([*(row.id for row in rows), *(one.prediction_id for one in of_block)])
    assert {one.prediction_id for one in left} == logs.read_ids(folder)
    assert logs.find_bytes(folder, KEY, *(row.id for row in rows if row.entity_id == KEY)) == []


KILLED = f"""
import sys
from pathlib import Path
from flywheel_ml.prediction_log.retention.erase import erase
from library.helpers import logs
erase(logs.open_log(Path(sys.argv[1])), "{KEY}")
"""


@pytest.mark.chaos
def test_killed_erasure_is_completed_by_a_rerun(folder: Path, start_and_kill: StartAndKill) -> None:
    rows = [logs.make_prediction(20 - at / 10_000, at, KEY if at % 2 else OTHER) for at in range(20_000)]
    blocks = [logs.make_block(3, [OTHER, KEY] * 200, at) for at in range(20)]
    log = logs.write(folder, [*rows, *blocks], [logs.label(row) for row in rows])
    export(log, lambda *_: None)
    with held(folder):
        for seconds in (0.9, 1.0, 1.2, 1.5):
            start_and_kill(KILLED, str(folder), seconds)
    start_and_kill(KILLED, str(folder), 1.1)
    done = erase(log, KEY)
    assert done.failures == []
    left = list(Reader(str(folder)).predictions())
    assert len(left) == 10_000 + 20 * 200
    assert {row.prediction.entity_id for row in left} == {OTHER}
    assert len(Reader(str(folder)).labels()) == 10_000
    assert logs.find_bytes(folder, KEY) == logs.find_bytes(log.exports, KEY) == []
    assert [one.name for one in (folder / requests.FOLDER).glob("*.json")] == [tombstones.FILE]


def test_failed_erase_is_completed_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.3)
    rows = [logs.make_prediction(1, at, KEY) for at in range(3)]
    log = logs.write(folder, rows, [logs.label(row) for row in rows])
    (other,) = (path for path in folder.glob("*.db") if not count_rows(path, "predictions"))
    with filelock.FileLock(folder / f".{other.stem}.lock", thread_local=False):
        assert erase(log, KEY).failures
        assert count_rows(other, "labels") == 3
    done = erase(log, KEY)
    assert done.failures == []
    assert count_rows(other, "labels") == 0


def count_rows(path: Path, table: str) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_export_that_was_moved_is_reported(folder: Path) -> None:
    log, _, _ = fill(folder)
    moved = Path(export(log, lambda *_: None).folder)
    moved.rename(folder.parent / "moved")
    assert [one for one in erase(log, KEY).failures if str(moved) in one and "this export is gone; move it back" in one]


@pytest.mark.parametrize("compression", ["NONE", "zstd"])
def test_rewritten_copy_keeps_codec_and_mode(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [KEY, OTHER, KEY], "x": [1, 2, 3]}), path, compression=compression)
    path.chmod(0o600)
    codec = pq.ParquetFile(path).metadata.row_group(0).column(0).compression
    assert copies.delete_from_parquet(path, "id", KEY) == 2
    assert pq.read_table(path)["id"].to_pylist() == [OTHER]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == codec
    assert path.stat().st_mode & 0o777 == 0o600
