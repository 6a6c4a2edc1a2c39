"""Acknowledged rows are logged exactly once despite kills, full disks, locks and outages; others are rejected."""

import http.client
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa

from flywheel_ml.prediction_log import Prediction, Reader, Writer, new_id
from flywheel_ml.serving.api.feedback import MAX_LISTED_IDS
from flywheel_ml.serving.prediction.batcher import MAX_INLINE_BODY_BYTES
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.postgresql import PostgreSQL
from library.helpers.servers import Server, find_workers, run_threads, wait_for

pytestmark = pytest.mark.chaos

OUT = "urn:problem:prediction-log-unavailable"
Instance = dict[str, Any]


class Refused(NamedTuple):
    """An answer other than success: who gave it, after how long, and what it was."""

    path: str
    seconds: float
    status: int
    kind: str


class Crowd:
    """Clients that request predictions and send labels in a loop, and the responses that they got."""

    def __init__(self, sends_values: bool = False) -> None:
        self._sends_values = sends_values
        self.predicted: list[str] = []
        self.labelled: list[str] = []
        self.refused: list[Refused] = []
        self.unlogged: list[str] = []
        self.broken = 0

    def has_only_outages(self) -> bool:
        """Whether that was the reason of all refusals, and of some, and nine of ten came at once."""
        quick = sorted(one.seconds for one in self.refused)
        return {(one.status, one.kind) for one in self.refused} == {(503, OUT)} and quick[len(quick) * 9 // 10] < 0.2

    def wait_for_answers(self, many: int, seconds: float = 15) -> None:
        """Wait until `many` more labels were accepted."""
        before = len(self.labelled)
        wait_for(lambda: len(self.labelled) >= before + many, seconds)

    def work(self, url: str, instance: Instance, ended: threading.Event) -> None:
        """Run one client, which reconnects when it is disconnected."""
        address = urlsplit(url)
        body = json.dumps({"instances": [instance]})
        while not ended.is_set():
            with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=15)) as connection:
                try:
                    while not ended.is_set():
                        self._turn(connection, body)
                except (OSError, http.client.HTTPException):
                    self.broken += 1
                    time.sleep(0.02)

    def _turn(self, connection: http.client.HTTPConnection, body: str) -> None:
        time.sleep(0.002)  # Or the callers' own work would leave the servers none of the machine.
        told = self._ask(connection, "/predict", body)
        if told is None:
            return
        (name,) = [one["id"] for one in told["predictions"]]
        self.predicted.append(name)
        labels: list[dict[str, Any]] = [{"id": name, "label": True}]
        if self._sends_values:
            labels.append({"id": name, "metric": "revenue", "value": 12.5})
        if self._ask(connection, "/feedback", json.dumps({"labels": labels})) is not None:
            self.labelled.append(name)

    def _ask(self, connection: http.client.HTTPConnection, path: str, body: str) -> Any:
        started = time.monotonic()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        if response.status == 200:
            if response.headers["X-Prediction-Logged"] == "false":
                self.unlogged += [one["id"] for one in content["predictions"]]
                return None
            return content
        self.refused.append(Refused(path, time.monotonic() - started, response.status, content["type"]))
        time.sleep(0.02)
        return None


@contextmanager
def crowd(server: Server, instance: Instance, callers: int = 4, sends_values: bool = False) -> Iterator[Crowd]:
    seen, ended = Crowd(sends_values), threading.Event()
    with run_threads(callers, partial(seen.work, server.url, instance, ended), ended):
        yield seen


Found = tuple[Counter[str], Counter[str]]


def in_files(folder: Path) -> Found:
    """Count each prediction and each label in a folder's log files, which must be intact."""
    predictions, labels = Counter[str](), Counter[str]()
    for path in folder.glob("*.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            predictions.update(name for (name,) in file.execute("SELECT id FROM predictions"))
            labels.update(name for (name,) in file.execute("SELECT prediction_id FROM labels"))
    return predictions, labels


def in_database(url: str) -> Found:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        predictions = Counter(connection.scalars(sa.text("SELECT id FROM predictions")))
        labels = Counter(connection.scalars(sa.text("SELECT prediction_id FROM labels")))
    engine.dispose()
    return predictions, labels


def assert_nothing_lost(seen: Crowd, found: Found) -> None:
    predictions, labels = found
    assert len(set(seen.predicted)) == len(seen.predicted)
    assert [name for name in seen.predicted if predictions[name] != 1] == []
    assert [name for name in seen.labelled if labels[name] != 1] == []
    assert [name for name, times in (predictions + labels).items() if times > 2] == []
    assert max(predictions.values()) == max(labels.values()) == 1


def assert_no_value_lost(seen: Crowd, log: str) -> None:
    """Each label was sent with a value of a metric, in one request."""
    found = Counter(one.prediction_id for one in Reader(log).metric_values(seen.labelled))
    assert [name for name in seen.labelled if found[name] != 1] == []


def metric(server: Server, name: str) -> float:
    """A series of the server's, or of the worker that happens to answer."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def status(server: Server, path: str) -> int:
    return httpx.get(f"{server.url}{path}", trust_env=False, timeout=10).status_code


def is_ready(server: Server) -> bool:
    return status(server, "/readyz") == 200


# Killed.


def test_kills_under_load_lose_and_repeat_nothing(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2") as server, crowd(server, example, 16, sends_values=True) as seen:
        seen.wait_for_answers(50)
        for turn in range(20):
            pids = find_workers(server)
            victims = list(pids.values()) if turn % 5 == 4 else [pids[turn % 2]]
            for pid in victims:
                with suppress(ProcessLookupError):  # It was killed the last time, and its successor is not ready yet.
                    os.kill(pid, signal.SIGKILL)
            # Long enough for the next victim to be in the middle of its work.
            seen.wait_for_answers(10, seconds=20)
        wait_for(lambda: all(Path(f"/proc/{pid}").exists() for pid in find_workers(server).values()))
    assert seen.broken >= 20
    assert seen.refused == []
    assert_nothing_lost(seen, in_files(Path(server.log)))
    assert_no_value_lost(seen, server.log)
    # The files of the dead were taken over, not left behind one by one.
    assert sorted(path.name for path in Path(server.log).glob("*.db")) == [f"serve-{at}.db" for at in range(2)]


def test_damaged_journal_loses_only_damaged_transactions(
    folder: ServingFolder, tmp_path: Path, example: Instance
) -> None:
    folder.roll_out("1")
    body = {"instances": [example]}
    with Server(tmp_path) as server:
        with server.client() as client:
            told = [client.post("/predict", json=body).json()["predictions"][0]["id"] for _ in range(60)]
        server.process.kill()
        server.process.wait()
    frame = 4096 + 24
    for fault, (end, instead) in {
        "cut in the last frame": (-100, b""),
        "cut by several frames": (-3 * frame - 7, b""),
        "garbage in the last frame": (-100, b"\xff" * 100),
    }.items():
        log = tmp_path / fault
        shutil.copytree(server.log, log)
        journal = log / "serve-0.db-wal"
        journal.write_bytes(journal.read_bytes()[:end] + instead)
        if fault == "garbage in the last frame":
            with Server(tmp_path, ML_PREDICTION_LOG=str(log)) as again, again.client() as client:
                later = client.post("/predict", json=body).json()["predictions"][0]["id"]
        else:
            with Writer(str(log), "serve") as writer:
                later = new_id()
                writer.append(
                    [Prediction(later, 1, None, None, "champion", "1", None, "{}", "{}", 0.5, 1, False)]
                ).result(10)
        found, _ = in_files(log)
        kept = [name for name in told if found[name] == 1]
        # What is lost is the end of the journal, and nothing from its middle.
        assert kept == told[: len(kept)]
        assert len(told) - 4 <= len(kept) < len(told)
        assert found == Counter([*kept, later])


# Full.


@contextmanager
def limited_files(tmp_path: Path) -> Iterator[tuple[Server, Callable[[], object], Callable[[], object], Path]]:
    """A server that is forbidden, while it runs, to let any file grow."""
    with Server(tmp_path) as server:

        def limit(most: int) -> None:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        journal = Path(server.log) / "serve-0.db-wal"
        yield server, lambda: limit(journal.stat().st_size), lambda: limit(resource.RLIM_INFINITY), Path(server.log)


@contextmanager
def small_disk(tmp_path: Path) -> Iterator[tuple[Server, Callable[[], object], Callable[[], object], Path]]:
    """A server whose log is on a disk of its own, of two megabytes."""
    unshare = shutil.which("unshare")
    private = [unshare or "", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk of their own")
    (tmp_path / "log").mkdir()
    mounted = f'mount -t tmpfs -o size=2m none "{tmp_path / "log"}" && exec "$@"'
    with Server(tmp_path, under=[*private, "sh", "-c", mounted, "sh"]) as server:
        disk = Path("/proc", str(server.process.pid), "root") / (tmp_path / "log").relative_to("/")

        def fill() -> None:
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))

        yield server, fill, (disk / "filler").unlink, disk


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the limit, and for the disk")
@pytest.mark.parametrize("disk", [limited_files, small_disk])
def test_full_disk_rejects_requests_until_space_is_free(
    folder: ServingFolder, tmp_path: Path, example: Instance, disk: Any
) -> None:
    folder.roll_out("1")
    with disk(tmp_path) as (server, fill, make_room, log):
        with crowd(server, example) as seen:
            seen.wait_for_answers(20)
            assert seen.refused == []
            fill()
            wait_for(lambda: len(seen.refused) >= 40)
            assert seen.has_only_outages()
            with server.client() as client:
                large = {"instances": [example] * (2 * MAX_INLINE_BODY_BYTES // len(json.dumps(example)))}
                for path, body in (
                    ("/predict", large),
                    ("/invocations", {"inputs": [example]}),
                    ("/feedback", {"labels": [{"id": seen.predicted[0], "label": True}]}),
                ):
                    refused = client.post(path, json=body)
                    assert (refused.status_code, refused.json()["type"]) == (503, OUT)
                    assert refused.headers["retry-after"] == "1"
                assert [status(server, path) for path in ("/healthz", "/model", "/readyz", "/ping")] == [
                    200,
                    200,
                    503,
                    503,
                ]
                assert metric(server, "prediction_log_up") == 0
                assert metric(server, "prediction_log_commit_failures_total") >= 1
            make_room()
            back = time.monotonic()
            wait_for(lambda: is_ready(server))
            seen.wait_for_answers(20)
            assert time.monotonic() - back < 5
            assert metric(server, "prediction_log_up") == 1
            before = len(seen.refused)
            seen.wait_for_answers(20)
            assert len(seen.refused) == before
        # While the disk is there. SQLite itself would take it for a folder of this process's own disk.
        shutil.copytree(log, tmp_path / "copy")
    found = in_files(tmp_path / "copy")
    assert_nothing_lost(seen, found)
    said = [line["event"] for line in server.log_lines() if line["event"].startswith("the prediction log")]
    assert len(said) == 2
    assert said[1].startswith("the prediction log is available again")


# Deleted or moved.


def delete_file(log: Path) -> None:
    (log / "serve-0.db").unlink()


def delete_file_and_journal(log: Path) -> None:
    for path in sorted(log.glob("serve-0.db*")):
        path.unlink()


def delete_folder(log: Path) -> None:
    while log.exists():  # The server creates it again while it is being deleted.
        shutil.rmtree(log, ignore_errors=True)


def delete_journal(log: Path) -> None:
    (log / "serve-0.db-wal").unlink()


def move_file(log: Path) -> None:
    (log.parent / "moved").mkdir()
    (log / "serve-0.db").rename(log.parent / "moved" / "serve-0.db")


def move_folder(log: Path) -> None:
    log.rename(log.parent / "moved")


@pytest.mark.parametrize(
    ("lose", "is_all_kept"),
    [
        (delete_file, False),
        (delete_file_and_journal, False),
        (delete_folder, False),
        (delete_journal, True),
        (move_file, True),
        (move_folder, True),
    ],
)
def test_acknowledged_rows_survive_the_loss_of_the_log_file(
    folder: ServingFolder, tmp_path: Path, example: Instance, lose: Callable[[Path], None], is_all_kept: bool
) -> None:
    folder.roll_out("1")
    log = tmp_path / "log"
    with Server(tmp_path) as server:
        with crowd(server, example, callers=8) as seen:
            seen.wait_for_answers(50)
            lose(log)
            lost_ms = time.time_ns() // 1_000_000
            seen.wait_for_answers(50)
        assert metric(server, "prediction_log_files_lost_total") == 1
        assert is_ready(server)
    found, _ = in_files(log)
    if (log.parent / "moved").exists():
        found += in_files(log.parent / "moved")[0]
    # An id begins with the time at which it was made.
    kept = [name for name in seen.predicted if is_all_kept or int(name[:12], 16) > lost_ms]
    assert len(kept) >= 40
    assert [name for name in kept if found[name] != 1] == []
    # Labels of lost predictions are rejected, and requests that were in progress; nothing else is.
    refused = [one for one in seen.refused if (one.path, one.status) != ("/feedback", 404)]
    assert len(refused) <= 8
    assert len([line for line in server.log_lines() if line["event"].startswith("serve-0.db")]) == 1


# Locked.


@contextmanager
def lock_log(path: Path) -> Iterator[None]:
    """Another program holds a log file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


def test_requests_wait_for_a_short_lock_of_the_log(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path) as server:
        with crowd(server, example) as seen:
            seen.wait_for_answers(10)
            with lock_log(Path(server.log) / "serve-0.db"):
                until, asked = time.monotonic() + 3, []
                while time.monotonic() < until:
                    began = time.monotonic()
                    assert status(server, "/healthz") == 200
                    asked.append(time.monotonic() - began)
                    time.sleep(0.05)
                during = len(seen.predicted)
            seen.wait_for_answers(10)
        assert seen.refused == []
        assert seen.broken == 0
        assert len(seen.predicted) > during
        # Nobody else waits for the lock, which is held for twice as long.
    assert max(asked) < 1.5
    assert_nothing_lost(seen, in_files(Path(server.log)))


def test_long_lock_of_the_log_is_an_outage(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path) as server:
        with crowd(server, example) as seen:
            seen.wait_for_answers(10)
            with lock_log(Path(server.log) / "serve-0.db"):
                wait_for(lambda: len(seen.refused) >= 40)
                assert not is_ready(server)
            back = time.monotonic()
            wait_for(lambda: is_ready(server))
            assert time.monotonic() - back < 3
            seen.wait_for_answers(10)
        # The first requests waited for the lock; later ones were rejected immediately.
        assert seen.has_only_outages()
    assert_nothing_lost(seen, in_files(Path(server.log)))


# Gone.


@pytest.fixture
def database(postgres: PostgreSQL) -> str:
    """The address of an empty database."""
    return postgres.database()


@contextmanager
def gone(postgres: PostgreSQL) -> Iterator[None]:
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


@pytest.mark.parametrize(("seconds", "processes"), [(1, "1"), (30, "2")])
def test_unavailable_database_rejects_requests_immediately(
    folder: ServingFolder,
    tmp_path: Path,
    example: Instance,
    postgres: PostgreSQL,
    database: str,
    seconds: float,
    processes: str,
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", processes, ML_PREDICTION_LOG=database) as server:
        with crowd(server, example, callers=8) as seen:
            seen.wait_for_answers(20)
            assert seen.refused == []
            with gone(postgres):
                wait_for(lambda: len(seen.refused) >= 40)
                wait_for(lambda: not is_ready(server))
                time.sleep(seconds)
                assert status(server, "/model") == 200
            back = time.monotonic()
            wait_for(lambda: all(is_ready(server) for _ in range(5)))
            seen.wait_for_answers(20)
            assert time.monotonic() - back < 5
            before = len(seen.refused)
            seen.wait_for_answers(20)
            assert len(seen.refused) == before
        assert seen.has_only_outages()
    assert seen.broken == 0
    assert_nothing_lost(seen, in_database(database))


def spooling(tmp_path: Path, database: str) -> dict[str, str]:
    return {
        "ML_PREDICTION_LOG": database,
        "ML_LOG_FAILURE_POLICY": "spool",
        "ML_LOG_SPOOL_FOLDER": str(tmp_path / "spool"),
    }


def is_empty(folder: Path) -> bool:
    predictions, labels = in_files(folder)
    return not predictions and not labels


def test_spool_keeps_rows_through_outage_and_kills(
    folder: ServingFolder, tmp_path: Path, example: Instance, postgres: PostgreSQL, database: str
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", **spooling(tmp_path, database)) as server:
        with crowd(server, example, callers=8) as seen:
            seen.wait_for_answers(20)
            with gone(postgres):
                seen.wait_for_answers(20)
                time.sleep(25)
                # Its successor starts although there is no database.
                victim = find_workers(server)[0]
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda: find_workers(server)[0] != victim)
                seen.wait_for_answers(20)
                assert is_ready(server)
                waiting, _ = in_files(tmp_path / "spool")
                assert waiting
            # In the middle of moving.
            wait_for(lambda: sum(in_files(tmp_path / "spool")[0].values()) < sum(waiting.values()))
            os.kill(find_workers(server)[1], signal.SIGKILL)
            seen.wait_for_answers(20)
        wait_for(lambda: is_empty(tmp_path / "spool"), 20)
    # What a prediction that is in the database turned out to be cannot be checked without it.
    assert {one.path for one in seen.refused} <= {"/feedback"}
    assert len(seen.refused) <= 3 * 8
    found = in_database(database)
    assert_nothing_lost(seen, found)
    assert found[0].keys() >= waiting.keys()


def test_next_server_moves_the_spool_with_fewer_workers(
    folder: ServingFolder, tmp_path: Path, example: Instance, postgres: PostgreSQL, database: str
) -> None:
    folder.roll_out("1")
    settings = spooling(tmp_path, database)
    with (
        Server(tmp_path, "--workers", "2", **settings) as server,
        crowd(server, example, callers=8) as seen,
        gone(postgres),
    ):
        seen.wait_for_answers(40)
        pids = find_workers(server).values()
        server.process.kill()
        for pid in pids:  # Or they would finish their work, perhaps with the database already back.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait()
    assert not is_empty(tmp_path / "spool")
    with Server(tmp_path, **settings) as again:
        wait_for(lambda: is_empty(tmp_path / "spool"))
        assert metric(again, "prediction_log_spooled_rows") == 0
    assert_nothing_lost(seen, in_database(database))


def test_full_spool_rejects_requests(
    folder: ServingFolder, tmp_path: Path, example: Instance, postgres: PostgreSQL, database: str
) -> None:
    folder.roll_out("1")
    settings = {**spooling(tmp_path, database), "ML_LOG_SPOOL_MAX_BYTES": "1000000"}
    with Server(tmp_path, **settings) as server:
        with crowd(server, example) as seen:
            with gone(postgres), server.client() as client:
                many = {"instances": [example] * 500}
                wait_for(lambda: client.post("/predict", json=many).status_code == 503)
                wait_for(lambda: len(seen.refused) >= 20)
                assert not is_ready(server)
            assert {(one.status, one.kind) for one in seen.refused} == {(503, OUT)}
            wait_for(lambda: is_ready(server))
            seen.wait_for_answers(20)
        wait_for(lambda: is_empty(tmp_path / "spool"))
    assert_nothing_lost(seen, in_database(database))


def test_unlogged_responses_are_marked_and_counted(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path, ML_LOG_FAILURE_POLICY="unlogged") as server:
        file = Path(server.log) / "serve-0.db"
        with server.client() as client:
            logged = client.post("/predict", json={"instances": [example]})
            assert "x-prediction-logged" not in logged.headers
            with closing(sqlite3.connect(file)) as other:
                other.execute("ALTER TABLE predictions RENAME TO gone")
            large = [example] * (2 * MAX_INLINE_BODY_BYTES // len(json.dumps(example)))
            for path, body in (
                ("/predict", {"instances": [example]}),
                ("/predict", {"instances": [example]}),
                ("/predict", {"instances": large}),
                ("/invocations", {"inputs": [example]}),
            ):
                answer = client.post(path, json=body)
                assert (answer.status_code, answer.headers["x-prediction-logged"]) == (200, "false")
            assert metric(server, "predictions_unlogged_total") == 3 + len(large)
            assert client.get("/readyz").status_code == 200
            # A label is taken for good or not at all.
            name = logged.json()["predictions"][0]["id"]
            assert client.post("/feedback", json={"labels": [{"id": name, "label": True}]}).status_code == 503
            with closing(sqlite3.connect(file)) as other:
                other.execute("ALTER TABLE gone RENAME TO predictions")

            def is_logged() -> bool:
                return "x-prediction-logged" not in client.post("/predict", json={"instances": [example]}).headers

            wait_for(is_logged)
    errors = [line for line in server.log_lines() if line["level"] == "error"]
    assert 1 <= len(errors) <= 5


# Labels from two sides at once.


@pytest.mark.parametrize("kind", ["files", "database"])
def test_simultaneous_conflicting_labels_store_only_one(
    folder: ServingFolder, tmp_path: Path, example: Instance, kind: str, request: pytest.FixtureRequest
) -> None:
    folder.roll_out("1")
    settings = {"ML_PREDICTION_LOG": request.getfixturevalue("database")} if kind == "database" else {}
    with Server(tmp_path, "--workers", "2", **settings) as server, ThreadPoolExecutor(8) as pool:
        with server.client() as client:
            told = client.post("/predict", json={"instances": [example] * (MAX_LISTED_IDS // 2)}).json()["predictions"]

        def send(name: str, label: bool) -> tuple[bool, int]:
            labels = {"labels": [{"id": name, "label": label}]}
            # A connection of its own, so that either worker may take it.
            return label, httpx.post(f"{server.url}/feedback", json=labels, trust_env=False, timeout=20).status_code

        stored: dict[str, bool] = {}
        for name in (one["id"] for one in told):
            answers = list(pool.map(send, [name] * 8, [True, False] * 4))
            (winner,) = {label for label, code in answers if code == 200}
            assert {code for label, code in answers if label != winner} == {409}
            assert [code for label, code in answers if label == winner] == [200] * 4
            stored[name] = winner
        found = in_database(settings["ML_PREDICTION_LOG"]) if settings else in_files(Path(server.log))
    assert found[1] == Counter(stored.keys())
