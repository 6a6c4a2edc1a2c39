"""Starting, stopping and dying."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.process.sockets import bind_alongside, listen
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ServingError
from library.helpers.project import PACKAGE
from library.helpers.servers import Server, find_workers, generate_load, wait_for

Instance = dict[str, Any]


def ids(answers: list[dict[str, Any]]) -> list[str]:
    return [prediction["id"] for answer in answers for prediction in answer["predictions"]]


def serve(home: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command, expected to stop by itself."""
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("ML_")}, **settings}
    command = [sys.executable, "-m", PACKAGE, "serve", *options]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.chaos
def test_killed_server_loses_no_acknowledged_row(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    labelled: list[str] = []
    with Server(tmp_path) as server:
        with generate_load(server, example) as crowd:
            crowd.wait_for_answers(50)
            with server.client() as client:
                for one in ids(crowd.answers)[:5]:
                    assert client.post("/feedback", json={"labels": [{"id": one, "label": True}]}).status_code == 200
                    labelled.append(one)
            server.process.kill()
            server.process.wait()
            crowd.go.clear()
        reader = Reader(server.log)
        acknowledged = ids(crowd.answers)
        assert len(acknowledged) == len(set(acknowledged))
        assert reader.find_known(acknowledged) == set(acknowledged)
        assert reader.labels(labelled) == dict.fromkeys(labelled, "true")


def test_stopping_server_drains_without_a_failed_request(
    folder: ServingFolder, tmp_path: Path, example: Instance
) -> None:
    folder.roll_out("1")
    with (
        Server(tmp_path, ML_DRAIN_SECONDS="1") as server,
        server.client() as probe,
        generate_load(server, example) as crowd,
    ):
        crowd.wait_for_answers(20)
        assert probe.get("/readyz").status_code == httpx.codes.OK
        stopped = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        wait_for(
            lambda: httpx.get(f"{server.url}/readyz", trust_env=False).status_code == httpx.codes.SERVICE_UNAVAILABLE
        )
        assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == httpx.codes.OK
        crowd.wait_for_answers(20)
        # A load balancer that watches /readyz sends nothing more from here on.
        crowd.go.clear()
        assert server.process.wait(10) == 0
        assert time.monotonic() - stopped > 0.9
        assert crowd.failures == []
        assert Reader(server.log).find_known(ids(crowd.answers)) == set(ids(crowd.answers))


def test_stopping_server_finishes_requests_in_flight(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path) as server:
        body = httpx.Request("POST", server.url, json={"instances": [example]}).content
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head.format(len(body)).encode() + body[:10])
            wait_for(
                lambda: (
                    httpx.get(f"{server.url}/metrics", trust_env=False).text.count("http_requests_in_flight 2.0") == 1
                )
            )
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(body[10:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert server.process.wait(10) == 0


@pytest.mark.chaos
def test_workers_share_the_address_and_are_restarted(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2") as server:
        first = find_workers(server)
        assert first.keys() == {0, 1}
        with server.client() as client:
            assert 'workers="2"' in client.get("/metrics").text
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: find_workers(server)[0] != first[0])
        with generate_load(server, example, clients=8) as crowd:
            crowd.wait_for_answers(50)
        assert crowd.failures == []
        assert Reader(server.log).find_known(ids(crowd.answers)) == set(ids(crowd.answers))
        assert server.stop() == 0
    assert sorted(path.name for path in Path(server.log).glob("*.db")) == ["serve-0.db", "serve-1.db"]


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one socket is shared, as it comes")
def test_connections_are_distributed_among_living_workers(
    folder: ServingFolder, tmp_path: Path, example: Instance
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2") as server:
        address = urlsplit(server.url)
        body = httpx.Request("POST", server.url, json={"instances": [example]}).content
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with ExitStack() as stack:
            crowd = [
                stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=10))
                for _ in range(64)
            ]
            for one in crowd:
                one.sendall(f"{head}\r\n\r\n".encode() + body)
            assert all(one.recv(100).startswith(b"HTTP/1.1 200") for one in crowd)
        answered = [rows_in(Path(server.log) / f"serve-{number}.db") for number in range(2)]
        assert sum(answered) == 64
        # By chance one in 30,000 runs has fewer.
        assert min(answered) >= 16

        os.kill(find_workers(server)[0], signal.SIGKILL)
        time.sleep(0.1)
        for _ in range(20):
            assert httpx.post(f"{server.url}/predict", content=body, trust_env=False, timeout=5).status_code == 200

        second = serve(tmp_path, "--port", str(address.port), "--workers", "2", ML_PREDICTION_LOG="other")
        assert (second.returncode, second.stdout) == (1, "")
        assert f"{address.hostname}:{address.port}: Address already in use" in second.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one socket is shared, as it comes")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("given", [True, False])
def test_address_stays_reserved_without_living_workers(host: str, given: bool) -> None:
    port = 0
    if given:
        with listen(host, 0) as free:
            port = free.getsockname()[1]
    with listen(host, port, several=True) as held:
        port = held.getsockname()[1]

        def is_taken(several: bool) -> bool:
            with pytest.raises(ServingError, match="Address already in use"):
                listen(host, port, several)
            return True

        assert is_taken(several=True)
        assert is_taken(several=False)
        for _ in range(2):
            with bind_alongside(held) as one, bind_alongside(held) as other:
                one.listen()
                other.listen()
                for _ in range(8):
                    socket.create_connection((host, port), timeout=5).close()
                assert is_taken(several=True)
        assert is_taken(several=True)
    with listen(host, port, several=True):
        pass  # Free again at once.


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one socket is shared, as it comes")
def test_connections_are_distributed_before_they_are_accepted() -> None:
    with (
        listen("127.0.0.1", 0, several=True) as held,
        bind_alongside(held) as one,
        bind_alongside(held) as other,
        ExitStack() as stack,
    ):
        for worker in (one, other):
            worker.setblocking(False)
            worker.listen()
        for _ in range(64):
            stack.enter_context(socket.create_connection(held.getsockname(), timeout=5))
        # By chance one in 30,000 runs has fewer.
        assert min(taken(one, stack), taken(other, stack)) >= 16


def taken(worker: socket.socket, stack: ExitStack) -> int:
    """How many connections wait for a worker, which takes them."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            stack.enter_context(worker.accept()[0])
            count += 1
    return count


def rows_in(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM predictions").fetchone()
        return int(count)


@pytest.mark.chaos
def test_workers_stop_when_their_supervisor_is_killed(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    with Server(tmp_path, "--workers", "2") as server:
        server.process.kill()

        def refused() -> bool:
            try:
                httpx.get(f"{server.url}/healthz", trust_env=False)
            except httpx.HTTPError:
                return True
            return False

        wait_for(refused)


def test_production_without_a_key_refuses_to_start(tmp_path: Path) -> None:
    result = serve(tmp_path, "--port", "0", ML_ENVIRONMENT="production")
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 1
    assert "ML_API_KEYS" in result.stderr


def test_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve(tmp_path, "--port", str(port))
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"127.0.0.1:{port}" in result.stderr


def test_start_fails_without_a_usable_log(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    result = serve(tmp_path, "--port", "0", ML_PREDICTION_LOG="taken")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "ML_PREDICTION_LOG" in result.stderr
