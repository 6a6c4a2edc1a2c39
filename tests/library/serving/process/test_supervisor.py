"""Several workers: one that dies or hangs is replaced, and SIGHUP replaces all without losing a request."""

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel_ml.core.project import import_reference
from flywheel_ml.prediction_log import Reader
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.process import is_alive
from library.helpers.project import PACKAGE, PROJECT, ROOT
from library.helpers.servers import Server, find_workers, wait_for
from library.helpers.traffic import traffic
from library.serving.observability.test_metrics import parse_metrics, value

Instance = dict[str, Any]

PATIENCE = 60.0
CREATED = "    app = library.create_app(settings, metrics, spans, features)\n"
IN_TERMINAL = """
import os, sys
os.setsid()
os.dup2(os.open(sys.argv[1], os.O_RDWR), 0)  # The first terminal that the leader of a session opens is its own.
os.execv(sys.argv[2], sys.argv[2:])
"""
BLOCKING = """
    @app.get("/block")
    async def block() -> None:
        import time

        time.sleep(5)

"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a copy of the example's code, for the server to import and the test to change."""
    copy = tmp_path / "src"
    shutil.copytree(ROOT / "src", copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def events(server: Server, *names: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line["event"] in names]


def reload(server: Server) -> dict[str, Any]:
    """SIGHUP; the line that says how it ended."""
    before = len(events(server, "reload_finished", "reload_failed"))
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(events(server, "reload_finished", "reload_failed")) > before, PATIENCE)
    return events(server, "reload_finished", "reload_failed")[-1]


def ready_pids(server: Server) -> list[int]:
    """Process ids in the order in which they were ready."""
    return [line["pid"] for line in events(server, "worker_ready")]


def are_gone(pids: Iterable[int]) -> bool:
    return not any(is_alive(pid) for pid in pids)


def add_route(source: Path, route: str) -> None:
    app = source / PACKAGE / "app.py"
    text = app.read_text()
    assert CREATED in text
    app.write_text(text.replace(CREATED, CREATED + route))


@pytest.mark.chaos
@pytest.mark.parametrize("pause", [0.0, pytest.param(0.3, marks=pytest.mark.full)])
def test_reload_replaces_all_workers_without_a_failed_request(
    folder: ServingFolder, tmp_path: Path, example: Instance, pause: float
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", ML_DRAIN_SECONDS="3") as server:
        with traffic(server, example, pause) as seen:
            seen.sees(20)
            for rounds in (1, 2):
                before = ready_pids(server)[-2:]
                assert reload(server)["event"] == "reload_finished"
                seen.sees(20)
                assert are_gone(before)
                assert len(ready_pids(server)) == 2 + 2 * rounds
        assert seen.failures == []
        # Each connection is closed with a response, long before the worker closes idle ones.
        assert seen.retried == 0
        with server.client() as client:
            assert client.get("/readyz").status_code == httpx.codes.OK
            told = parse_metrics(client.get("/metrics").text)
        assert value(told, "worker_info", workers="2") == 2
        assert value(told, "worker_starts_total") == 6
        assert value(told, "predictions_total") == len(set(seen.ids))
        assert Reader(server.log).find_known(seen.ids) == set(seen.ids)
        assert server.stop() == 0
        assert are_gone(ready_pids(server))
    # Workers that overlap need one number more.
    assert len(list(Path(server.log).glob("*.db"))) == 3


@pytest.mark.chaos
def test_reload_finishes_requests_and_closes_idle_connections(
    folder: ServingFolder, tmp_path: Path, example: Instance
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", ML_BODY_TIMEOUT_SECONDS="60") as server:
        body = httpx.Request("POST", server.url, json={"instances": [example]}).content
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        address = server.url.removeprefix("http://").split(":")
        idle, busy = (socket.create_connection((address[0], int(address[1])), timeout=20) for _ in range(2))
        with idle, busy:
            idle.sendall(head.encode() + body)
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            busy.sendall(head.encode() + body[:10])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(ready_pids(server)) == 3, PATIENCE)
            time.sleep(1.0)  # Its worker may be the one that stops now.
            busy.sendall(body[10:])
            assert busy.recv(65536).startswith(b"HTTP/1.1 200")
            assert idle.recv(100) == b""  # Closed without an error.
        wait_for(lambda: bool(events(server, "reload_finished")), PATIENCE)


@pytest.mark.chaos
def test_reload_reads_settings_and_code_again(
    folder: ServingFolder, tmp_path: Path, source: Path, example: Instance
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", PYTHONPATH=str(source)) as server, server.client() as client:
        body = {"instances": [example] * 4}
        assert client.post("/predict", json=body).status_code == httpx.codes.OK
        (tmp_path / ".env").write_text("ML_MAX_INSTANCES=3\n")
        add_route(source, '    app.get("/hello")(lambda: "hello")\n')
        assert reload(server)["event"] == "reload_finished"
        for _ in range(4):
            with server.client() as other:
                assert other.post("/predict", json=body).status_code == httpx.codes.UNPROCESSABLE_ENTITY
                assert other.get("/hello").json() == "hello"


@pytest.mark.chaos
def test_failed_reload_keeps_the_workers_and_logs_the_reason(
    folder: ServingFolder, tmp_path: Path, source: Path, example: Instance
) -> None:
    folder.roll_out("1")
    variables = tmp_path / ".env"
    with Server(tmp_path, "--workers", "2", PYTHONPATH=str(source)) as server:
        before = find_workers(server)

        def fails_with(*words: str) -> None:
            told = reload(server)
            assert (told["event"], told["level"]) == ("reload_failed", "error")
            assert all(word in told["reason"] for word in words), told["reason"]
            assert find_workers(server).keys() <= {0, 1, 2}
            with server.client() as client:
                assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK

        variables.write_text("ML_MAX_INSTANCES=none\n")
        fails_with("ML_MAX_INSTANCES", "see .env.example")
        variables.write_text("ML_ENVIRONMENT=production\n")
        fails_with("ML_API_KEYS")
        variables.unlink()
        features = source / PACKAGE / "features.py"
        text = features.read_text()
        features.write_text(f"{text}\nthis is no Python\n")
        fails_with("stopped before it was ready", "SyntaxError", "features.py")
        features.write_text(f"{text}\nunknown_name\n")
        fails_with("stopped before it was ready", "NameError", "unknown_name", "features.py:")
        features.write_text(text)
        assert find_workers(server) == before
        # Its model is gone for whoever starts now.
        folder.path.rename(tmp_path / "elsewhere")
        wait_for(lambda: not folder.path.exists())
        fails_with("would not be ready", "no model is in service")
        assert all(is_alive(pid) for pid in before.values())
        (tmp_path / "elsewhere").rename(folder.path)
        assert reload(server)["event"] == "reload_finished"
        assert are_gone(before.values())
        assert "Traceback" not in server.errors.read_text()


@pytest.mark.chaos
def test_sighup_during_a_reload_starts_another(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", ML_DRAIN_SECONDS="1") as server:
        with traffic(server, example, 0.01) as seen:
            for _ in range(3):  # Simultaneous signals: one reload.
                server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: bool(events(server, "reload_started")))
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(events(server, "reload_finished")) == 2, PATIENCE)
            time.sleep(1.0)
            seen.sees(20)
        assert seen.failures == []
        assert [line["event"] for line in events(server, "reload_started", "reload_finished")] == [
            "reload_started",
            "reload_finished",
        ] * 2
        assert len(ready_pids(server)) == 6
        assert are_gone(ready_pids(server)[:4])


@pytest.mark.chaos
def test_sigterm_during_a_reload_ends_all_workers(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", ML_DRAIN_SECONDS="1") as server:
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(ready_pids(server)) == 3, PATIENCE)
        began = time.monotonic()
        assert server.stop() == 0
        assert 0.9 < time.monotonic() - began < 8
        assert not events(server, "reload_finished", "reload_failed", "worker_died")
        assert are_gone(ready_pids(server))
        assert are_gone(started(server))


@pytest.mark.chaos
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_reload_replaces_workers_that_die_or_hang_meanwhile(
    folder: ServingFolder, tmp_path: Path, sent: signal.Signals
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", ML_WORKER_TIMEOUT_SECONDS="4") as server:
        first = ready_pids(server)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(events(server, "reload_started")))
        for pid in first:
            os.kill(pid, sent)
        wait_for(lambda: bool(events(server, "reload_finished")), PATIENCE)
        assert {line["status"] for line in events(server, "worker_died")} == {-signal.SIGKILL}
        wait_for(lambda: are_gone(first))
        with server.client() as client:
            wait_for(lambda: value(parse_metrics(client.get("/metrics").text), "worker_info") == 2)


@pytest.mark.chaos
def test_workers_stop_when_the_supervisor_is_killed_in_a_reload(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2") as server:
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(events(server, "reload_started")))
        time.sleep(0.3)
        found = started(server)
        assert len(found) >= 3
        server.process.kill()
        wait_for(lambda: are_gone(found), PATIENCE)


def started(server: Server) -> list[int]:
    """Every process of a server's; those of `multiprocessing` too."""
    found = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.chaos
def test_stopped_worker_is_replaced(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", ML_WORKER_TIMEOUT_SECONDS="4") as server:
        first = find_workers(server)
        began = time.monotonic()
        os.kill(first[1], signal.SIGSTOP)
        wait_for(lambda: find_workers(server)[1] != first[1], PATIENCE)
        assert time.monotonic() - began > 3
        (died,) = events(server, "worker_died")
        assert (died["worker"], died["status"]) == (1, -signal.SIGKILL)
        assert died["reason"] == "it hung: no sign of life for 4 s"
        assert find_workers(server)[0] == first[0]
        assert are_gone([first[1]])
        for _ in range(8):
            assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == httpx.codes.OK


@pytest.mark.chaos
def test_long_computation_does_not_count_as_hung(folder: ServingFolder, tmp_path: Path, source: Path) -> None:
    folder.roll_out("1")
    add_route(source, BLOCKING)
    options = {"ML_WORKER_TIMEOUT_SECONDS": "3", "PYTHONPATH": str(source)}
    with Server(tmp_path, "--workers", "2", **options) as server:
        assert httpx.get(f"{server.url}/block", trust_env=False, timeout=20).status_code == httpx.codes.OK
        assert not events(server, "worker_died")
        assert len(ready_pids(server)) == 2


@pytest.mark.chaos
def test_stopped_worker_delays_shutdown_within_its_time_limit(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2") as server:
        pids = find_workers(server)
        os.kill(pids[0], signal.SIGSTOP)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 25
        assert are_gone(pids.values())


@pytest.mark.chaos
def test_worker_is_restarted_at_most_once_a_second(folder: ServingFolder, tmp_path: Path, source: Path) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2", PYTHONPATH=str(source)) as server:
        features = source / PACKAGE / "features.py"
        text = features.read_text()
        features.write_text(f"{text}\nunknown_name\n")
        os.kill(find_workers(server)[0], signal.SIGKILL)
        wait_for(lambda: len(events(server, "worker_died")) == 4, PATIENCE)
        died = events(server, "worker_died")
        assert [line["worker"] for line in died] == [0] * 4
        assert (died[0]["status"], died[0]["reason"]) == (-signal.SIGKILL, f"exit status -{signal.SIGKILL:d}")
        assert all("unknown_name" in line["reason"] for line in died[1:])
        times = [time.mktime(time.strptime(line["at"][:19], "%Y-%m-%dT%H:%M:%S")) for line in died]
        assert times[3] - times[1] >= 1
        features.write_text(text)
        wait_for(lambda: len(ready_pids(server)) == 3, PATIENCE)


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_failed_start_of_workers_is_reported_in_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ML_")}
    result = subprocess.run(
        [sys.executable, "-m", PACKAGE, "serve", "--port", "0", *options],
        cwd=tmp_path,
        env={**inherited, "ML_PREDICTION_LOG": "taken"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == (1 if options else 2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "ML_PREDICTION_LOG" in line
    assert ("stopped before it was ready" in line) == bool(options)


def test_single_process_reports_that_it_cannot_reload(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path) as server, server.client() as client:
        told = reload(server)
        assert told["event"] == "reload_failed"
        assert "--workers 2" in told["reason"]
        assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
        assert server.stop() == 0


@pytest.mark.parametrize("count", ["1", "2"])
def test_server_stops_when_its_terminal_is_closed(folder: ServingFolder, tmp_path: Path, count: str) -> None:
    folder.roll_out("1")
    terminal, inside = pty.openpty()

    under = [sys.executable, "-c", IN_TERMINAL, os.ttyname(inside)]
    with Server(tmp_path, "--workers", count, under=under) as server:
        os.close(inside)
        assert server.process.poll() is None
        os.close(terminal)
        assert server.process.wait(20) == 0
        assert are_gone(ready_pids(server))


def test_reference_of_a_project_imports_it() -> None:
    assert import_reference(PROJECT.reference) == PROJECT
