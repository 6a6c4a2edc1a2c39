"""Pruning deletes what is old with its labels, from files with and without an owner, and nothing else."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import Reader, Writer
from flywheel_ml.prediction_log.retention import requests
from flywheel_ml.prediction_log.retention.operations import RULES
from flywheel_ml.prediction_log.retention.prune import prune, read_limits
from flywheel_ml.prediction_log.retention.stats import compute_stats
from flywheel_ml.utils.errors import Busy, ConfigError, ProjectError
from library.helpers import logs
from library.prediction_log.retention.conftest import StartAndKill

WEEK = timedelta(days=7)


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


def fill(folder: Path) -> tuple[set[str], set[str]]:
    """Write old and new rows to two files, each labelled in the other; returns the ids of both."""
    old = [logs.make_prediction(30 + at / 100, at) for at in range(60)]
    new = [logs.make_prediction(1 + at / 100, at) for at in range(40)]
    rest = [logs.make_block(20, ["a", "b"]), logs.make_block(2, ["a", "b"], 1)]
    outcomes = [logs.label(row) for row in (*old, *new)]
    logs.write(folder, [*old[:30], *new[:20], *outcomes[30:]], [*old[30:], *new[20:], *rest, *outcomes[:30]])
    kept = {row.id for row in new} | {rest[1].id, rest[1].id[:-1] + "1"}
    return {row.id for row in old}, kept


def test_prune_by_age_deletes_old_rows_and_their_labels(folder: Path) -> None:
    _, kept = fill(folder)
    done = prune(logs.open_log(folder), WEEK)
    assert logs.read_ids(folder) == kept
    labels = Reader(str(folder)).labels()
    assert len(labels) == 40
    assert labels.keys() <= kept
    assert (done.counts["predictions"], done.counts["labels"], done.counts["blocks"]) == (60, 60, 1)
    assert done.failures == {}
    assert prune(logs.open_log(folder), WEEK).until_us == 0


def test_owner_prunes_its_own_file(folder: Path) -> None:
    _, kept = fill(folder)
    with held(folder):
        # The test cannot take the lock, so the owner must have done it.
        done = prune(logs.open_log(folder), WEEK)
        assert logs.read_ids(folder) == kept
    assert done.counts["predictions"] == 60
    assert [path.name for path in (folder / requests.FOLDER).glob("request-*")] == []


def test_prune_returns_pages_to_the_disk(folder: Path) -> None:
    rows = [logs.make_prediction(30, at, inputs="x" * 2000) for at in range(2000)]
    log = logs.write(folder, [*rows, logs.make_prediction(1, 1)])
    before = (folder / "serve-0.db").stat().st_size
    with held(folder):
        done = prune(log, WEEK)
    assert (folder / "serve-0.db").stat().st_size < before / 10
    assert done.bytes_after < done.bytes_before / 10


def test_prune_by_size_keeps_the_newest_rows(folder: Path) -> None:
    rows = [logs.make_prediction(30 - at / 100, at, inputs="x" * 1000) for at in range(2000)]
    log = logs.write(folder, rows)
    size = log.measure()[1] // 2
    prune(log, size=size)
    left = logs.read_ids(folder)
    assert log.measure()[1] <= size
    assert left == {row.id for row in sorted(rows, key=lambda row: row.timestamp_us)[-len(left) :]}
    assert len(left) > 700


def test_dry_run_counts_and_deletes_nothing(folder: Path) -> None:
    old, kept = fill(folder)
    done = prune(logs.open_log(folder), WEEK, dry_run=True)
    assert done.counts == {"predictions": 60, "blocks": 1}
    assert logs.read_ids(folder) >= old | kept


def test_rows_without_profile_block_a_prune(folder: Path) -> None:
    old, kept = fill(folder)
    calls = []

    def profiles(target: str, until_us: int) -> int:
        calls.append((target, until_us))
        return 12

    with pytest.raises(ProjectError, match="12 rows belong to hours without a profile"):
        prune(logs.open_log(folder), WEEK, profiles=profiles)
    assert logs.read_ids(folder) >= old
    assert prune(logs.open_log(folder), WEEK, profiles=profiles, force=True).unprofiled == 12
    assert logs.read_ids(folder) == kept
    assert {target for target, _ in calls} == {str(folder)}


def test_two_jobs_at_once_are_refused(folder: Path) -> None:
    fill(folder)
    with requests.hold_job_lock(folder), pytest.raises(Busy, match="another prune, export or erase"):
        prune(logs.open_log(folder), WEEK)


def test_prune_reports_an_owner_that_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder)
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.3)
    with Writer(str(folder), "serve") as writer:
        # As in a package of before.
        runner = vars(writer)["_requests"]
        assert runner is not None
        runner.close()
        done = prune(logs.open_log(folder), WEEK)
    assert "has not answered" in done.failures["serve-0.db"]
    assert done.counts["predictions"] == 30


def test_prune_shrinks_a_file_of_an_older_version(folder: Path) -> None:
    rows = [logs.make_prediction(30, at, inputs="x" * 2000) for at in range(1000)]
    log = logs.write(folder, [*rows, logs.make_prediction(1, 1)])
    with sqlite3.connect(folder / "serve-0.db", isolation_level=None) as old:
        old.execute("PRAGMA auto_vacuum=NONE")
        old.execute("VACUUM")
    before = (folder / "serve-0.db").stat().st_size
    prune(log, WEEK)
    assert (folder / "serve-0.db").stat().st_size < before / 10


def test_prune_without_a_log_or_limit_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no prediction log"):
        prune(logs.open_log(tmp_path / "none"), WEEK)
    with pytest.raises(ConfigError, match="AGE=90d"):
        read_limits(Settings(_env_file=None))
    with pytest.raises(ConfigError, match="ML_LOG_MAX_AGE: 'soon'"):
        read_limits(Settings(_env_file=None, log_max_age="soon"))
    assert not (tmp_path / "none").exists()


def test_stats_report_rows_span_and_growth(folder: Path) -> None:
    fill(folder)
    found = compute_stats(logs.open_log(folder), 10_000_000)
    assert (found.files, found.rows["predictions"], found.rows["labels"], found.rows["block rows"]) == (2, 100, 100, 4)
    assert (found.limited_by, found.limit) == ("setting", 10_000_000)
    assert found.first_us is not None
    assert found.last_us is not None
    assert 29.5 < (found.last_us - found.first_us) / logs.DAY_US < 30.5
    assert found.growth is not None
    assert found.days_left is not None
    # 42 of 104 rows came in the last week.
    assert 0.5 < found.growth * 7 / (found.used * 0.4) < 2
    assert found.days_left == pytest.approx((10_000_000 - found.used) / found.growth)


def test_request_of_a_newer_version_is_answered_with_an_error(folder: Path) -> None:
    fill(folder)
    place = folder / requests.FOLDER
    place.mkdir()
    with held(folder):
        (place / "request-1.json").write_text('{"kind": "compress"}')
        result = place / "request-1.serve-0.json"
        while not result.is_file():
            time.sleep(0.05)
        assert "kind" in json.loads(result.read_text())["error"]


def test_every_table_of_the_log_has_a_rule() -> None:
    assert {"predictions", "blocks", "labels"} <= RULES.keys()
    assert not RULES["labels"].is_timed


KILLED = """
import sys
from datetime import timedelta
from pathlib import Path
from flywheel_ml.prediction_log.retention.prune import prune
from library.helpers import logs
prune(logs.open_log(Path(sys.argv[1])), timedelta(days=7))
"""


@pytest.mark.chaos
def test_killed_prune_is_completed_by_a_rerun(folder: Path, start_and_kill: StartAndKill) -> None:
    old = [logs.make_prediction(30 + at / 10_000, at) for at in range(20_000)]
    new = [logs.make_prediction(1, at) for at in range(500)]
    log = logs.write(folder, [*old, *map(logs.label, old)], [*new, *map(logs.label, new)])
    for seconds in (0.8, 0.9, 1.0):
        start_and_kill(KILLED, str(folder), seconds)
        assert logs.read_ids(folder) >= {row.id for row in new}
    prune(log, WEEK)
    assert logs.read_ids(folder) == {row.id for row in new}
    assert Reader(str(folder)).labels().keys() == {row.id for row in new}


def test_old_entity_labels_are_found_by_an_index(tmp_path: Path) -> None:
    logs.write(tmp_path / "log", [logs.make_prediction(1, 1, "a")])
    (path,) = (tmp_path / "log").glob("*.db")
    with sqlite3.connect(path) as connection:
        query = "EXPLAIN QUERY PLAN SELECT rowid FROM entity_labels WHERE timestamp_us < 5 LIMIT 20"
        ((*_, plan),) = connection.execute(query).fetchall()
    assert plan.startswith("SEARCH")
