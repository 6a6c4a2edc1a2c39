"""The prediction log loses no acknowledged row after a kill, and reports when it cannot write."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from flywheel_ml.prediction_log import (
    Block,
    Job,
    Outcome,
    Prediction,
    Reader,
    Writer,
    blocks,
    database_engine,
    dumps,
    migrations,
    new_block_ids,
    new_id,
    now_us,
    stores,
    to_datetime,
)
from flywheel_ml.prediction_log.reader import MAX_VARIABLES
from flywheel_ml.prediction_log.rows import SCHEMA_VERSION, versions
from flywheel_ml.prediction_log.stores import CHECKPOINT_PAGES
from flywheel_ml.utils.errors import ConfigError, ProjectError


def made(row_id: str = "", timestamp_us: int = 0, **changed: Any) -> Prediction:
    values: dict[str, Any] = {
        "entity_id": None,
        "event_timestamp_us": None,
        "variant": "champion",
        "model_version": "1",
        "model_digest": None,
        "inputs": dumps({"x": 1.5, "name": "ä"}),
        "output": dumps({"prediction": True}),
        "score": 0.25,
        "latency_us": 900,
        "degraded": False,
    }
    return Prediction(id=row_id or new_id(), timestamp_us=timestamp_us or now_us(), **{**values, **changed})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def writer(folder: Path) -> Iterator[Writer]:
    with Writer(str(folder), "serving") as opened:
        yield opened


def returned(writer: Writer) -> None:
    """Wait until an outage is over."""
    deadline = time.monotonic() + 10
    while writer.outage is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def logged_ids(folder: Path) -> set[str]:
    return {row.prediction.id for row in Reader(str(folder)).predictions()}


def test_written_rows_are_read_back_unchanged(folder: Path, writer: Writer) -> None:
    row = made(entity_id="flight 7", score=0.1 + 0.2, degraded=True)
    writer.append([row]).result(10)
    (found,) = Reader(str(folder)).predictions()
    assert (found.prediction, found.label) == (row, None)
    assert json.loads(found.prediction.inputs) == {"x": 1.5, "name": "ä"}


def test_acknowledged_rows_are_visible_to_readers(folder: Path, writer: Writer) -> None:
    for _ in range(20):
        row = made()
        writer.append([row]).result(10)
        assert row.id in logged_ids(folder)


def test_every_thread_gets_its_own_acknowledgement(folder: Path, writer: Writer) -> None:
    rows = [[made() for _ in range(3)] for _ in range(200)]
    done: list[Any] = [None] * len(rows)

    def append(first: int) -> None:
        for at in range(first, len(rows), 4):
            done[at] = writer.append(rows[at])

    threads = [threading.Thread(target=append, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(future.result(10) is None for future in done)
    assert logged_ids(folder) == {row.id for group in rows for row in group}


def test_try_commit_is_visible_at_once(folder: Path, writer: Writer) -> None:
    row = made()
    assert writer.try_commit([row])
    assert logged_ids(folder) == {row.id}


def test_failed_try_commit_leaves_rows_to_the_thread(folder: Path, writer: Writer) -> None:
    first, second = made(), made()
    assert writer.try_commit([first])
    assert not writer.try_commit([second, made(score=float("nan"))])
    with sqlite3.connect(folder / "serving-0.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert not writer.try_commit([second])
        assert time.monotonic() - started < 1
        waiting = writer.append([second])
        assert not writer.try_commit([made()])
        other.execute("ROLLBACK")
    other.close()
    waiting.result(10)
    assert logged_ids(folder) == {first.id, second.id}


def test_slow_commits_are_left_to_the_thread(folder: Path) -> None:
    with Writer(str(folder), "serving", "FULL") as opened:
        opened._usual_seconds = 1.0
        row = made()
        assert not opened.try_commit([row])
        opened.append([row]).result(10)
        assert opened._usual_seconds < 1.0
    assert not opened.try_commit([made()])
    assert logged_ids(folder) == {row.id}


def test_writer_waits_for_a_file_in_recovery(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(str(folder), "serving") as opened:
        opened.append([made()]).result(10)
    other = sqlite3.connect(folder / "serving-0.db", isolation_level=None, check_same_thread=False)

    def opened_and_locked(url: Any) -> sa.Engine:
        opened = database_engine.open_engine(url)
        opened.dispose()
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.5, other.close).start()
        return opened

    monkeypatch.setattr(stores, "open_engine", opened_and_locked)
    with Writer(str(folder), "serving") as opened:
        opened.append([made()]).result(10)
    assert len(logged_ids(folder)) == 2


def test_journal_size_is_bounded(folder: Path, writer: Writer) -> None:
    for _ in range(8):
        assert (
            writer.try_commit([made() for _ in range(CHECKPOINT_PAGES)]) or writer.append([made()]).result(30) is None
        )
        writer.append([made()]).result(30)
    # Had nothing been put in its place, the journal would hold every row.
    assert (folder / "serving-0.db").stat().st_size > (folder / "serving-0.db-wal").stat().st_size


def test_empty_append_is_acknowledged_at_once(writer: Writer) -> None:
    assert writer.append([]).result(0) is None


def test_close_commits_queued_rows_and_rejects_later_ones(folder: Path) -> None:
    opened = Writer(str(folder), "serving")
    futures = [opened.append([made()]) for _ in range(500)]
    opened.close()
    assert all(future.done() and future.exception() is None for future in futures)
    assert len(logged_ids(folder)) == 500
    with pytest.raises(ProjectError, match="the prediction log is closed"):
        opened.append([made()]).result(0)
    opened.close()


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """Threads give way to each other after every few instructions."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_hasty_threads")
def test_row_appended_while_closing_is_committed_or_rejected(folder: Path) -> None:
    for _ in range(20):
        opened = Writer(str(folder), "serving")
        futures: list[Any] = []
        rows = [made() for _ in range(200)]
        thread = threading.Thread(target=lambda o=opened, r=rows, f=futures: f.extend(o.append([row]) for row in r))
        thread.start()
        opened.close()
        thread.join()
        assert not wait(futures, timeout=5).not_done
        acknowledged = {row.id for row, future in zip(rows, futures, strict=True) if future.exception() is None}
        assert acknowledged == logged_ids(folder) & {row.id for row in rows}


@pytest.mark.parametrize(
    "bad",
    [
        {"score": float("nan")},
        {"score": None},
        {"inputs": None},
        {"latency_us": 2**70},
        {"entity_id": object()},
    ],
)
def test_bad_row_does_not_fail_others(folder: Path, writer: Writer, bad: dict[str, Any]) -> None:
    good = [made() for _ in range(100)]
    futures = [writer.append([row]) for row in good[:50]]
    refused = writer.append([made(**bad)])
    futures += [writer.append([row]) for row in good[50:]]
    assert refused.exception(10) is not None
    assert [future.exception(10) for future in futures] == [None] * 100
    assert logged_ids(folder) == {row.id for row in good}


def test_id_is_logged_once(folder: Path, writer: Writer) -> None:
    row = made()
    writer.append([row]).result(10)
    assert writer.append([row._replace(score=0.9)]).exception(10) is not None
    (found,) = Reader(str(folder)).predictions()
    assert found.prediction == row


def test_rows_of_one_call_are_committed_atomically(folder: Path, writer: Writer) -> None:
    assert writer.append([made(), made(score=float("nan"))]).exception(10) is not None
    assert logged_ids(folder) == set()


KILLED = """
import sys
from flywheel_ml.prediction_log import Prediction, Writer, new_id, now_us
writer = Writer(sys.argv[1], "serving")
while True:
    facts = (None, None, "champion", "1", None, "{}", "{}", 0.5, 1, False)
    rows = [Prediction(new_id(), now_us(), *facts) for _ in range(8)]
    pending = [writer.append([row]) for row in rows]
    for row, future in zip(rows, pending):
        future.result()
        print(row.id, flush=True)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("after", [0.1, 0.3])
def test_kill_9_loses_no_acknowledged_row(folder: Path, after: float) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        threading.Timer(after, process.kill).start()
        told = [first, *process.stdout]
    assert process.returncode == -signal.SIGKILL
    acknowledged = {line.strip() for line in told if line.endswith("\n")}
    assert len(acknowledged) > 1
    assert acknowledged <= logged_ids(folder)
    # The next process takes the same file over, the operating system having freed the claim.
    with Writer(str(folder), "serving") as next_one:
        next_one.append([made()]).result(10)
    assert [path.name for path in folder.glob("*.db")] == ["serving-0.db"]
    assert acknowledged <= logged_ids(folder)


def test_copied_folder_of_a_killed_writer_is_complete(folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(200)]
        process.kill()
    shutil.copytree(folder, tmp_path / "copy")
    assert {line.strip() for line in told} <= logged_ids(tmp_path / "copy")


def test_files_of_two_processes_are_read_as_one_log(folder: Path, writer: Writer) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        other = process.stdout.readline().strip()
        mine = made()
        writer.append([mine]).result(10)
        process.kill()
    assert sorted(path.name for path in folder.glob("*.db")) == ["serving-0.db", "serving-1.db"]
    assert {mine.id, other} <= logged_ids(folder)


def test_each_role_of_a_process_has_its_own_file(folder: Path, writer: Writer) -> None:
    with Writer(str(folder), "batch") as batch, Writer(str(folder), "serving") as second:
        batch.append([made()]).result(10)
        second.append([made()]).result(10)
    assert sorted(path.name for path in folder.glob("*.db")) == ["batch-0.db", "serving-0.db", "serving-1.db"]
    assert len(logged_ids(folder)) == 2


def test_label_joins_its_prediction_from_another_file(folder: Path, writer: Writer) -> None:
    rows = [made() for _ in range(3)]
    writer.append(rows).result(10)
    with Writer(str(folder), "serving") as other:
        other.append([Outcome(rows[1].id, now_us(), "true"), Outcome("unknown", now_us(), "false")]).result(10)
    reader = Reader(str(folder))
    assert {row.prediction.id: row.label for row in reader.predictions()} == {
        rows[0].id: None,
        rows[1].id: "true",
        rows[2].id: None,
    }
    assert reader.labels() == {rows[1].id: "true", "unknown": "false"}
    assert reader.labels([rows[0].id, rows[1].id]) == {rows[1].id: "true"}
    assert reader.find_known([rows[0].id, "unknown"]) == {rows[0].id}


def test_time_filter_includes_since_and_excludes_until(folder: Path, writer: Writer) -> None:
    writer.append([made(timestamp_us=at) for at in (10, 20, 30)]).result(10)
    found = [row.prediction.timestamp_us for row in Reader(str(folder)).predictions(since_us=10, until_us=30)]
    assert sorted(found) == [10, 20]


def test_rows_are_filtered_by_version_and_variant(folder: Path, writer: Writer) -> None:
    writer.append([made(model_version=version, variant=variant) for version in "12" for variant in ("a", "b")]).result(
        10
    )
    reader = Reader(str(folder))
    assert len(list(reader.predictions(model_version="2"))) == 2
    assert [row.prediction.variant for row in reader.predictions(model_version="2", variant="b")] == ["b"]


def test_many_ids_are_looked_up_in_several_queries(folder: Path, writer: Writer) -> None:
    rows = [made(timestamp_us=1) for _ in range(4 * MAX_VARIABLES)]
    writer.append(rows).result(60)
    ids = [row.id for row in rows]
    reader = Reader(str(folder))
    assert reader.find_known(ids) == set(ids)
    assert reader.labels(ids) == {}


def test_jobs_are_listed_oldest_first(folder: Path) -> None:
    jobs = [Job(new_id(), at, "1", "f" * 64, "in.csv", "out.parquet", 10**10, 1.5) for at in (30, 10, 20)]
    with Writer(str(folder), "batch") as batch:
        batch.append(jobs[:2]).result(10)
    with Writer(str(folder), "other") as other:
        other.append(jobs[2:]).result(10)
    assert Reader(str(folder)).jobs() == sorted(jobs, key=lambda job: job.timestamp_us)


def test_missing_log_is_empty_and_reading_creates_none(tmp_path: Path) -> None:
    for target in (str(tmp_path / "nowhere"), f"sqlite:///{tmp_path}/absent.db"):
        reader = Reader(target)
        assert (list(reader.predictions()), reader.labels(), reader.jobs()) == ([], {}, [])
    assert not (tmp_path / "nowhere").exists()


def test_database_is_read_by_its_url(folder: Path, writer: Writer) -> None:
    writer.append([made()]).result(10)
    assert len(list(Reader(f"sqlite:///{folder}/serving-0.db").predictions())) == 1


def test_second_first_writer_finds_the_database_created(folder: Path, writer: Writer) -> None:
    engine = sa.create_engine(f"sqlite:///{folder}/serving-0.db")
    migrations.migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(sa.select(versions)).all() == [(SCHEMA_VERSION,)]
    engine.dispose()


def test_writer_rejects_a_sqlite_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ML_PREDICTION_LOG: a SQLite file has one writer; give a folder"):
        Writer(f"sqlite:///{tmp_path}/shared.db", "serving")


@pytest.mark.parametrize(
    "url", ["nosuch://user:secret@host/log", "postgresql+nodriver://user:secret@host/log", "a b://"]
)
def test_invalid_url_is_rejected_without_its_password(url: str) -> None:
    for use in (lambda: Writer(url, "serving"), lambda: Reader(url).labels()):
        with pytest.raises(ConfigError, match="ML_PREDICTION_LOG: no database can be opened") as refused:
            use()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["with space", "per%20cent", "que?stion", "ha#sh", "größe", "a&b=c", "+plus"])
def test_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with Writer(str(folder), "serving") as opened:
        opened.append([made()]).result(10)
    assert (folder / "serving-0.db").is_file()
    assert len(logged_ids(folder)) == 1


# A large request is one row of the log, and read back as many.


def block(timestamp_us: int = 5, **changed: Any) -> Block:
    ids = new_block_ids(3)
    inputs = pa.table({"x": [1.5, None, 2.5], "at": [datetime(2013, 6, 15, 8, 30)] * 3, "key": ["a", None, "c"]})
    beside = [{"false": 1.0 - score, "true": score} for score in (0.25, 0.5, 0.75)]
    told = {"prediction": [False, True, True], "probabilities": beside, "score": [0.25, 0.5, 0.75]}
    facts = (ids[0], timestamp_us, 3, "key", "at", "champion", "1", "d" * 64)
    packed = Block(*facts, blocks.pack_table(inputs), blocks.pack_table(pa.table(told)), 900, False)
    return packed._replace(**changed)


def block_in_json() -> Block:
    """The same rows as `block` has."""
    rows: list[dict[str, Any]] = [
        {"x": 1.5, "at": "2013-06-15T08:30:00", "key": "a"},
        {"x": None, "at": "2013-06-15T08:30:00"},
        {"x": 2.5, "at": "2013-06-15T08:30:00", "key": "c"},
    ]
    scores = [0.25, 0.5, 0.75]
    told = [
        dumps({"prediction": score >= 0.5, "probabilities": {"false": 1.0 - score, "true": score}}) for score in scores
    ]
    return block()._replace(inputs=blocks.pack_inputs(rows), outputs=blocks.pack_outputs(told, list(map(str, scores))))


@pytest.mark.parametrize("make", [block, block_in_json])
def test_block_is_read_back_as_its_rows(folder: Path, writer: Writer, make: Callable[[], Block]) -> None:
    asked = make()
    assert writer.try_commit([asked])
    assert writer.try_commit([Outcome(asked.id, 6, "true")])
    first, second, third = Reader(str(folder)).predictions()
    assert first.prediction == Prediction(
        asked.id,
        5,
        "a",
        1_371_285_000_000_000,
        "champion",
        "1",
        "d" * 64,
        dumps({"x": 1.5, "at": "2013-06-15T08:30:00", "key": "a"}),
        dumps({"prediction": False, "probabilities": {"false": 0.75, "true": 0.25}}),
        0.25,
        900,
        False,
    )
    assert (first.label, second.label) == ("true", None)
    assert (second.prediction.entity_id, json.loads(second.prediction.inputs)["x"]) == (None, None)
    assert [one.prediction.id[-8:] for one in (first, second, third)] == ["00000000", "00000001", "00000002"]


@pytest.mark.parametrize(
    "asked",
    [
        [{"x": 1, "key": "a"}, {"x": None, "key": "b"}],
        [{"x": 1}, {}, {"key": "c", "x": 2}],
        [{"x": 1}, {"key": "b"}],
        [{}, {}],
    ],
)
def test_columns_missing_from_json_rows_are_null(asked: list[dict[str, Any]]) -> None:
    told = [f'{{"prediction":{at}}}' for at in range(len(asked))]
    found = list(blocks.unpack(blocks.pack_inputs(asked), blocks.pack_outputs(told, ["0.5"] * len(asked)), "key"))
    names = {name for row in asked for name in row}
    assert [json.loads(row.inputs) for row in found] == [{name: row.get(name) for name in names} for row in asked]
    assert [row.entity_id for row in found] == [row.get("key") for row in asked]
    assert [(row.output, row.score) for row in found] == [(one, 0.5) for one in told]


def test_find_known_finds_the_rows_of_blocks_only(folder: Path, writer: Writer) -> None:
    asked, alone = block(), made()
    writer.append([asked, alone]).result(10)
    shared = asked.id[:-8]
    known = {f"{shared}{at:08x}" for at in range(3)} | {alone.id}
    strange = {f"{shared}00000003", f"{shared}0000000g", f"{shared}-0000001", new_id(), "x"}
    assert Reader(str(folder)).find_known([*known, *strange]) == known


def test_prediction_is_found_by_its_id_in_rows_and_blocks(folder: Path, writer: Writer) -> None:
    alone, shadowed, asked = made(), made(variant="shadow"), block()
    writer.append([alone, asked]).result(10)
    with Writer(str(folder), "serving") as other:
        other.append([made(), shadowed]).result(10)
    log = Reader(str(folder))
    assert [log.find(row.id) for row in (alone, shadowed)] == [alone, shadowed]
    of_block = [found.prediction for found in log.predictions() if found.prediction.timestamp_us == asked.timestamp_us]
    assert [log.find(row.id) for row in of_block] == of_block
    assert len(of_block) == 3
    beyond = f"{asked.id[:-1]}3"
    for unknown in (new_id(), beyond, "", "x' OR 1=1 --", "0" * 31):
        assert log.find(unknown) is None


def test_blocks_are_filtered_like_rows(folder: Path, writer: Writer) -> None:
    writer.append([block(5), block(9, model_version="2"), block(9, variant="fallback")]).result(10)
    reader = Reader(str(folder))
    for wanted, count in (
        ({}, 9),
        ({"since_us": 6}, 6),
        ({"until_us": 9}, 3),
        ({"model_version": "2"}, 3),
        ({"variant": "champion"}, 6),
    ):
        assert len(list(reader.predictions(**wanted))) == count


def test_arrow_blocks_without_pyarrow_name_the_missing_extra(
    folder: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = block()
    writer.append([asked]).result(10)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    reader = Reader(str(folder))
    assert reader.find_known([asked.id]) == {asked.id}
    with pytest.raises(ConfigError, match="install the extra 'arrow'"):
        list(reader.predictions())


def test_json_blocks_are_read_without_pyarrow(folder: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.append([block_in_json()]).result(10)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert [found.prediction.score for found in Reader(str(folder)).predictions()] == [0.25, 0.5, 0.75]


# What cannot be used is refused by name.


def newer(folder: Path) -> None:
    with Writer(str(folder), "serving") as opened:
        opened.append([made()]).result(10)
    with sqlite3.connect(folder / "serving-0.db") as connection:
        connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    connection.close()


def test_log_of_a_newer_version_is_rejected(folder: Path) -> None:
    newer(folder)
    before = (folder / "serving-0.db").read_bytes()
    message = rf"serving-0.db.* has schema version {SCHEMA_VERSION + 1}, this package knows {SCHEMA_VERSION}; update"
    with pytest.raises(ConfigError, match=message) as refused:
        Writer(str(folder), "serving")
    with pytest.raises(ConfigError, match=message):
        list(Reader(str(folder)).predictions())
    assert (folder / "serving-0.db").read_bytes() == before
    # The refusal holds no claim, however long it is kept: the file is free for whoever knows it.
    assert refused.value.exit_code == 2
    with sqlite3.connect(folder / "serving-0.db") as connection:
        connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION,))
    connection.close()
    with Writer(str(folder), "serving"):
        assert [path.name for path in folder.glob("*.db")] == ["serving-0.db"]


def test_file_that_is_not_a_database_is_rejected_by_name(folder: Path) -> None:
    folder.mkdir()
    (folder / "serving-0.db").write_bytes(b"no database at all" * 100)
    for use in (lambda: Writer(str(folder), "serving"), lambda: list(Reader(str(folder)).predictions())):
        with pytest.raises(ConfigError, match=r"serving-0.db.* cannot be used: file is not a database"):
            use()


def test_damaged_database_is_rejected_while_reading(folder: Path) -> None:
    with Writer(str(folder), "serving") as opened:
        opened.append([made() for _ in range(2000)]).result(10)
    path = folder / "serving-0.db"
    content = bytearray(path.read_bytes())
    content[20_000 : len(content) - 4096] = b"\xff" * (len(content) - 24_096)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"serving-0.db.* cannot be used: database disk image is malformed"):
        list(Reader(str(folder)).predictions())


def test_uncreatable_folder_is_rejected_by_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"ML_PREDICTION_LOG: the folder '.*file/log' cannot be created: Not a directory"
    ):
        Writer(str(tmp_path / "file" / "log"), "serving")


def test_unwritable_folder_is_rejected_by_its_setting(folder: Path) -> None:
    (folder / ".serving-0.lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"ML_PREDICTION_LOG: '.*serving-0.lock' cannot be locked"):
        Writer(str(folder), "serving")


def test_failed_write_is_reported_and_the_writer_continues(folder: Path, writer: Writer) -> None:
    writer.append([made()]).result(10)
    with sqlite3.connect(folder / "serving-0.db", isolation_level=None) as connection:
        connection.execute("ALTER TABLE predictions RENAME TO aside")
        assert writer.append([made()]).exception(10) is not None
        connection.execute("ALTER TABLE aside RENAME TO predictions")
    connection.close()
    returned(writer)
    writer.append([made()]).result(10)
    assert len(logged_ids(folder)) == 2


def test_ids_sort_by_time_and_are_unique() -> None:
    early = new_id()
    time.sleep(0.002)
    ids = [new_id() for _ in range(5000)]
    assert len(set(ids)) == 5000
    assert all(len(one) == 32 and early < one for one in ids)


def test_log_times_are_in_utc() -> None:
    assert to_datetime(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert abs((to_datetime(now_us()) - datetime.now(UTC)).total_seconds()) < 5
