"""Rows written after a log file was deleted, moved, replaced or truncated are not lost."""

import logging
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flywheel_ml.prediction_log import Prediction, Reader, Spool, Unavailable, Writer, new_id, now_us, stores

NAME = "serve-0.db"
PAGES = 40
"""Pages between two checkpoints: some rows are in the file, others in its journal."""
Way = Callable[[Path], object]


def made() -> Prediction:
    return Prediction(
        new_id(), now_us(), "k", None, "champion", "1", None, "{}", '{"prediction":true}', 0.25, 900, False
    )


def count_rows(*folders: Path) -> Counter[str]:
    """How often each prediction is in the folders' files, all of which have to be whole."""
    return Counter(
        row.prediction.id for folder in folders if folder.exists() for row in Reader(str(folder)).predictions()
    )


def delete(folder: Path, *endings: str) -> None:
    for ending in endings:
        (folder / f"{NAME}{ending}").unlink()


def move(folder: Path, *endings: str) -> None:
    elsewhere = folder.parent / "moved"
    elsewhere.mkdir()
    for ending in endings:
        (folder / f"{NAME}{ending}").rename(elsewhere / f"{NAME}{ending}")


def restore(folder: Path) -> None:
    """Put a backup in the file's place, as `mv` does."""
    shutil.copyfile(folder.parent / "backup.db", folder / "new")
    (folder / "new").rename(folder / NAME)


KEEPS_EVERYTHING: dict[str, Way] = {
    "the file moved": lambda folder: move(folder, ""),
    "the file and its journal moved": lambda folder: move(folder, "", "-wal", "-shm"),
    "the file renamed in the folder": lambda folder: (folder / NAME).rename(folder / "old.db"),
    "the folder moved": lambda folder: folder.rename(folder.parent / "moved"),
    "the journal deleted": lambda folder: delete(folder, "-wal"),
    "the journal and its index deleted": lambda folder: delete(folder, "-wal", "-shm"),
}
LOSES_WHAT_WAS_THERE: dict[str, Way] = {
    "the file deleted": lambda folder: delete(folder, ""),
    "the file and its journal deleted": lambda folder: delete(folder, "", "-wal", "-shm"),
    "the folder deleted": shutil.rmtree,
    "a backup moved into its place": restore,
    "a backup copied over it": lambda folder: shutil.copyfile(folder.parent / "backup.db", folder / NAME),
    "the file truncated": lambda folder: os.truncate(folder / NAME, 0),
    "the journal truncated": lambda folder: os.truncate(folder / f"{NAME}-wal", 0),
}
WAYS = KEEPS_EVERYTHING | LOSES_WHAT_WAS_THERE


@pytest.fixture(autouse=True)
def _frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "CHECKPOINT_PAGES", PAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log's folder; next to it an older backup of its file."""
    with Writer(str(tmp_path / "log"), "serve") as writer:
        writer.append([made() for _ in range(10)]).result(10)
    shutil.copyfile(tmp_path / "log" / NAME, tmp_path / "backup.db")
    return tmp_path / "log"


@pytest.mark.parametrize("way", WAYS)
def test_rows_acknowledged_after_a_loss_are_in_a_file(folder: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    before, after = [made() for _ in range(2 * PAGES)], [made() for _ in range(6)]
    known = set(count_rows(folder))
    with Writer(str(folder), "serve") as writer:
        writer.append(before[:-3]).result(10)
        writer.append(before[-3:]).result(10)
        WAYS[way](folder)
        for row in after:
            if not writer.try_commit([row]):
                writer.append([row]).result(10)
        assert writer.lost_files == 1
        assert writer.outage is None
        found = count_rows(folder, folder.parent / "moved")
    assert count_rows(folder, folder.parent / "moved") == found
    assert max(found.values()) == 1
    assert {row.id for row in after} <= found.keys()
    if way in KEEPS_EVERYTHING:
        assert {row.id for row in before} | known <= found.keys()
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told.startswith(NAME)
    assert "while it was open" in told
    assert "new rows go to " in told


def test_overwritten_file_is_left_unchanged(folder: Path) -> None:
    backup = (folder.parent / "backup.db").read_bytes()
    with Writer(str(folder), "serve") as writer:
        writer.append([made() for _ in range(2 * PAGES)]).result(10)
        writer.append([made()]).result(10)
        (folder / NAME).write_bytes(backup)
        writer.append([made()]).result(10)
    assert (folder / NAME).read_bytes() == backup
    assert len(count_rows(folder)) == 11


def test_vacuumed_file_is_still_written(folder: Path) -> None:
    rows = [made() for _ in range(2 * PAGES)]
    with Writer(str(folder), "serve") as writer:
        writer.append(rows).result(10)
        writer.append([made()]).result(10)
        with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as other:
            other.execute("DELETE FROM predictions")
            other.execute("VACUUM")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        last = made()
        writer.append([last]).result(10)
        assert writer.lost_files == 0
    assert count_rows(folder) == Counter([last.id])


def test_rows_are_rejected_until_a_new_file_can_be_created(folder: Path) -> None:
    with Writer(str(folder), "serve") as writer:
        folder.rename(folder.parent / "moved")
        folder.write_text("no folder")
        with pytest.raises(Unavailable, match="cannot be created"):
            writer.append([made()]).result(10)
        assert writer.outage
        folder.unlink()
        row = made()
        while writer.outage:
            time.sleep(0.02)
        writer.append([row]).result(10)
    assert row.id in count_rows(folder)


def test_loss_is_detected_without_a_row(folder: Path) -> None:
    with Writer(str(folder), "serve") as writer:
        delete(folder, "", "-wal", "-shm")
        deadline = time.monotonic() + 10
        while not (folder / "serve-1.db").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert writer.lost_files == 1


def test_name_of_a_lost_file_is_released(folder: Path) -> None:
    with Writer(str(folder), "serve") as writer:
        for _ in range(3):
            for file in folder.glob("*.db"):
                file.rename(folder.parent / f"{new_id()}.moved")
            writer.append([made()]).result(10)
        assert writer.lost_files == 3
        with Writer(str(folder), "serve") as other:
            other.append([made()]).result(10)
    assert len(list(folder.glob("*.db"))) == 2


@pytest.mark.parametrize("way", ["the file deleted", "the folder moved"])
def test_rows_spooled_after_a_loss_are_moved(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder, "serve", "NORMAL", 10_000_000)
    before, after = [made() for _ in range(2 * PAGES)], [made() for _ in range(3)]
    spool.commit(before)
    spool.commit([made()])
    WAYS[way](folder)
    spool.commit(after)
    assert spool.lost_files == 1
    moved: list[str] = []
    while spool.move(lambda rows: moved.extend(row.id for row in rows if isinstance(row, Prediction))):
        pass
    spool.close()
    assert moved == [row.id for row in after]
    assert spool.rows == 0
