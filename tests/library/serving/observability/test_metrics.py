"""Metrics are correct for all workers, including dead ones."""

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import filelock
import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from flywheel_ml.core.bundle import LINEAGE
from flywheel_ml.core.serving_folder import Challenger
from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.observability import multiprocess
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.phases import PHASES
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.files import write_json
from library.helpers.servers import InProcess, Server, find_workers, generate_load, wait_for

Instance = dict[str, Any]
Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

COUNTS = ("_total", "_bucket", "_count", "_sum")


def parse_metrics(text: str) -> Series:
    """Series and values of an exposition; fails if it has the same series twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            assert series not in found
            found[series] = sample.value
    return found


def value(series: Series, name: str, **labels: str) -> float:
    """The sum of the series of a name that have these labels."""
    return sum(number for (one, has), number in series.items() if one == name and labels.items() <= dict(has).items())


@contextmanager
def scrape_continuously(server: Server) -> Iterator[list[Series]]:
    """Scrapes of whichever worker answers, a fresh connection each, while the block runs."""
    seen, ended = list[Series](), threading.Event()

    def work() -> None:
        while not ended.is_set():
            with server.client() as client:
                try:
                    response = client.get("/metrics")
                except httpx.HTTPError:  # Its worker was killed.
                    continue
            assert response.status_code == 200
            seen.append(parse_metrics(response.text))
            time.sleep(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def find_decreases(before: Series, after: Series) -> list[Any]:
    return [
        (series, number, after.get(series))
        for series, number in before.items()
        if series[0].endswith(COUNTS) and not series[0].startswith("process_") and after.get(series, -1.0) < number
    ]


def kill(server: Server, number: int) -> None:
    before = find_workers(server)[number]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: find_workers(server)[number] != before, seconds=30)


def find_metrics_folder(server: Server) -> Path:
    """Find the folder that the server's supervisor has locked."""
    links = []
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):  # Closed meanwhile.
            links.append(descriptor.readlink())
    (lock,) = [link for link in links if link.name == multiprocess.LOCK and multiprocess.PREFIX in str(link)]
    return lock.parent


@pytest.mark.chaos
def test_counts_of_all_workers_survive_a_kill(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    kills = 2
    with Server(tmp_path, "--workers", "3") as server:
        with scrape_continuously(server) as seen, generate_load(server, example, clients=6) as crowd:
            crowd.wait_for_answers(100)
            for number in range(kills):
                kill(server, number)
                crowd.wait_for_answers(50)
        answered, lost = len(crowd.answers), len(crowd.failures)
        assert len(seen) > 5
        assert [find_decreases(*pair) for pair in pairwise(seen)] == [[]] * (len(seen) - 1)
        with server.client() as client:
            wait_for(lambda: value(parse_metrics(client.get("/metrics").text), "http_requests_in_flight") == 1)
            last = parse_metrics(client.get("/metrics").text)
        committed = sum(1 for _ in Reader(server.log).predictions())
        # Counted after the commit and before the answer leaves, so a killed worker leaves nothing out.
        assert answered <= value(last, "predictions_total") <= committed <= answered + lost
        # Requests are counted once the response is sent, so the most recent one may be missing.
        told = value(last, "http_requests_total", route="/predict", status="200")
        assert answered - kills <= told <= answered + lost
        assert value(last, "http_request_duration_seconds_count", route="/predict") == told
        assert value(last, "worker_starts_total") == 3 + kills
        assert value(last, "worker_info", workers="3") == 3
        assert value(last, "model_info") == 1
        assert value(last, "prediction_queue_size") == value(last, "prediction_log_waiting_rows") == 0
        assert value(last, "prediction_log_lag_seconds") == 0
        living = {dict(has)["process"] for name, has in last if name == "process_resident_memory_bytes"}
        assert living == {str(pid) for pid in find_workers(server).values()}
        counts = find_metrics_folder(server)
        assert (counts / "counter_2.db").exists()
        assert server.stop() == 0
    assert not counts.exists()


def test_only_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocess, "MEMORY", tmp_path)
    long_ago = time.time() - 2 * multiprocess.YOUNG_SECONDS
    left, living, young, strange = (
        tmp_path / name for name in (*(multiprocess.PREFIX + one for one in "abc"), "other")
    )
    for path in (left, living, young, strange):
        path.mkdir()
        (path / "counter_0.db").touch()
        (path / multiprocess.LOCK).touch()
        if path is not young:
            os.utime(path, (long_ago, long_ago))
    with filelock.FileLock(living / multiprocess.LOCK), multiprocess.create_folder() as made:
        assert made.parent == tmp_path
        assert {left.exists(), living.exists(), young.exists(), strange.exists()} == {False, True}
        assert not left.exists()
        assert made.stat().st_mode & 0o777 == 0o700
    assert sorted(tmp_path.iterdir()) == sorted([living, young, strange])


def test_counts_use_temporary_files_without_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, files = tmp_path / "memory", tmp_path / "files"
    memory.mkdir()
    files.mkdir()
    monkeypatch.setattr(multiprocess, "MEMORY", memory)
    monkeypatch.setattr(tempfile, "tempdir", str(files))
    with multiprocess.create_folder() as made:
        assert made.parent == memory
    monkeypatch.setattr(multiprocess, "ROOM", 2**80)
    with multiprocess.create_folder() as made:
        assert made.parent == files
    monkeypatch.setattr(multiprocess, "MEMORY", tmp_path / "missing")
    with multiprocess.create_folder() as made:
        assert made.parent == files


def test_starting_worker_does_not_break_the_metrics(tmp_path: Path) -> None:
    counts = MmapedDict(str(tmp_path / "counter_0.db"))
    counts.write_value(mmap_key("asked", "asked_total", [], [], "Requests."), 3.0, 0.0)
    for name in ("counter_1.db", "gauge_livesum_1.db"):
        (tmp_path / name).touch()
    (tmp_path / "histogram_1.db").write_bytes(bytes(65_536))
    told = {sample.name: sample.value for family in multiprocess.aggregate(tmp_path) for sample in family.samples}
    assert told == {"asked_total": 3.0}
    counts.close()


def test_waiting_rows_are_reported_with_their_age(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller, ThreadPoolExecutor(2) as pool:

        def read_value() -> tuple[float, float]:
            found = parse_metrics(caller.request("GET", "/metrics").text)
            return value(found, "prediction_log_waiting_rows"), value(found, "prediction_log_lag_seconds")

        assert read_value() == (0, 0)
        with sqlite3.connect(tmp_path / "log" / "serve-0.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            body = {"instances": [example] * 3}
            asked = pool.submit(caller.request, "POST", "/predict", json=body)
            wait_for(lambda: read_value()[0] == 3 and read_value()[1] > 0.2)
            assert read_value()[1] < 5
            other.execute("ROLLBACK")
        other.close()
        assert asked.result(10).status_code == 200
        wait_for(lambda: read_value() == (0, 0))


def test_age_of_the_model_is_reported(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    trained_at = datetime.now(UTC) - timedelta(days=2)
    write_json(folder.bundle("1") / LINEAGE, {"trained_at": trained_at.isoformat(timespec="seconds")})
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))

    def read_value(name: str) -> float | None:
        found = {one: number for (one, _), number in parse_metrics(caller.request("GET", "/metrics").text).items()}
        return found.get(name)

    with InProcess(app) as caller:
        assert read_value("model_age_seconds") == pytest.approx(2 * 86400, abs=60)
        # Nobody said when this one was made: then it is as old as its service.
        folder.roll_out("2")
        (folder.bundle("2") / LINEAGE).write_text("{")
        wait_for(lambda: (read_value("model_age_seconds") or 99.0) < 60)
        folder.point(None)
        wait_for(lambda: read_value("model_age_seconds") is None)
        assert read_value("model_info") is None


def test_starting_worker_raises_no_alert() -> None:
    found = parse_metrics(generate_latest(Metrics()).decode())
    assert {name for name, _ in found}.isdisjoint({"prediction_log_up", "model_age_seconds", "experiment_running"})
    assert value(found, "prediction_log_lag_seconds") == 0


def test_share_of_a_challenger_is_shown_while_it_runs(folder: ServingFolder) -> None:
    ref, salt = folder.roll_out("1"), "0" * 32
    since = "2020-01-01T00:00:00+00:00"
    other = Challenger(ref=folder.add("2"), share=0.25, salt=salt, since=since)
    folder.point(ref, challenger=other)
    app = create_app(Settings(serving_folder=folder.path, prediction_log=str(folder.path.parent / "log")))
    with InProcess(app) as server:

        def read() -> dict[str, float]:
            found = parse_metrics(server.request("GET", "/metrics").text)
            names = ("experiment_share", "http_requests_in_flight_limit")
            return {name: number for (name, _), number in found.items() if name in names}

        assert read() == {"experiment_share": 0.25, "http_requests_in_flight_limit": 256}
        folder.point(ref)
        wait_for(lambda: "experiment_share" not in read())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_metrics(server: Server) -> None:
    with server.client() as client:
        text = client.get("/metrics").text
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert "error" not in result.stderr


def test_phases_add_up_to_at_most_the_request_time(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path) as server, server.client() as client:
        sizes = [1] * 20 + [200]  # The last one is processed outside the event loop.
        for count in sizes:
            assert client.post("/predict", json={"instances": [example] * count}).status_code == 200
        found = parse_metrics(client.get("/metrics").text)
    phases = {phase: value(found, "prediction_phase_duration_seconds_sum", phase=phase) for phase in PHASES}
    assert all(seconds > 0 for seconds in phases.values())
    took = value(found, "http_request_duration_seconds_sum", route="/predict")
    assert took / 4 < sum(phases.values()) < took
    for phase in PHASES:
        batches = len(sizes) - (phase == "respond")
        assert value(found, "prediction_phase_duration_seconds_count", phase=phase) == batches
