"""Many connections never exhaust the descriptors, and the warning is logged once."""

import asyncio
import resource
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from flywheel_ml.serving.errors.problems import ProblemDocument
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.process import connections
from flywheel_ml.serving.process.connections import ConnectionLimit
from flywheel_ml.serving.process.protocol import Protocol
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.servers import Server, connect, read_all

FEW = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
"""Runs a command that may open few files, and cannot allow itself more."""


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_idle_connections_beyond_the_limit_block_nobody(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any]
) -> None:
    folder.roll_out("1")
    with Server(tmp_path, under=FEW) as server, ExitStack() as stack, server.client() as client:
        assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
        for turn in range(4):
            idle = [stack.enter_context(connect(server)) for _ in range(150)]
            if turn % 2:  # These have been of use.
                for connection in idle:
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            for _ in range(5):
                began = time.monotonic()
                with server.client() as fresh:
                    assert fresh.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
                    assert fresh.post("/feedback", json={"labels": []}).status_code == 422
                assert time.monotonic() - began < 1
        with server.client() as fresh:
            assert metric(fresh, "http_connections") < 256
            assert metric(fresh, "http_connections_closed_idle_total") > 300
        folder.roll_out("2")
        deadline = time.monotonic() + 10
        with server.client() as fresh:
            while fresh.get("/model").json()["version"] != "2":
                assert time.monotonic() < deadline
        said = [line for line in server.log_lines() if line["event"] == "too_many_connections"]
        assert [line["level"] for line in said] == ["warning"]
        assert 50 < said[0]["limit"] < 200
        assert server.errors.stat().st_size < 100_000
        assert [line for line in server.log_lines() if line["level"] == "error"] == []


def test_connections_in_use_are_kept_and_new_ones_rejected(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    begun = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n{"
    with Server(tmp_path, ML_MAX_CONNECTIONS="5") as server, ExitStack() as stack:
        used = [stack.enter_context(connect(server)) for _ in range(5)]
        for connection in used:
            connection.sendall(begun)
        time.sleep(0.3)
        for _ in range(3):
            with connect(server) as refused:
                refused.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
                head, _, body = read_all(refused).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"\r\nretry-after: 1\r\n" in head
            assert ProblemDocument.model_validate_json(body).type == "urn:problem:too-many-connections"
        silent = [stack.enter_context(connect(server)) for _ in range(40)]
        for connection in silent:
            connection.settimeout(5)
            assert connection.recv(1) == b""
        for connection in used:
            connection.sendall(b"         ")
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")
        # Each of them rests now, and gives way.
        with server.client() as client:
            assert client.get("/healthz").status_code == httpx.codes.OK
            assert metric(client, "http_connections_rejected_total") == 43


class Idle:
    """An idle connection."""

    def __init__(self, open_ones: set["Idle"], idle_from: float | None, has_asked: bool) -> None:
        self.idle_from = idle_from
        self.has_asked = has_asked
        self._open_ones = open_ones
        open_ones.add(self)

    def close(self) -> None:
        self._open_ones.discard(self)


def test_oldest_unused_connections_are_closed_first() -> None:
    found: set[Idle] = set()
    fresh, old = Idle(found, 5.0, False), Idle(found, 1.0, False)
    used, busy = Idle(found, 0.5, True), Idle(found, None, True)
    limit = ConnectionLimit(3, Metrics(), logger())

    def admit() -> bool:
        new = Idle(found, 9.0, False)
        return limit.admit(cast("Protocol", new), cast("set[Protocol]", found))

    gone = []
    for _ in range(3):
        before = set(found)
        assert admit()
        gone += list(before - found)
        found -= {one for one in found if one.idle_from == 9.0}
        Idle(found, None, True)
    assert gone == [old, fresh, used]
    assert not admit()
    assert busy in found


def test_process_raises_its_descriptor_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: told.append(limits))
    for soft, hard, wanted in (
        (256, 1024, 1024),
        (256, resource.RLIM_INFINITY, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 0),
        (50_000, 50_000, 0),
    ):
        told.clear()
        monkeypatch.setattr(resource, "getrlimit", lambda _, found=(soft, hard): found)
        connections.raise_descriptor_limit(10_000)
        if wanted is None:
            assert 10_000 < told[0][0] < 12_000
        else:
            assert told == ([(wanted, hard)] if wanted else [])
        assert connections.count_free_descriptors() >= 1


@pytest.mark.chaos
def test_many_connections_do_not_exhaust_descriptors(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    with Server(tmp_path, under=FEW) as server:
        address = httpx.URL(server.url)

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            try:
                return await reader.readline()
            except ConnectionError:
                return b""
            finally:
                writer.close()

        async def storm() -> list[bytes]:
            return await asyncio.gather(*(ask() for _ in range(2000)))

        told = asyncio.run(storm())
        assert {line[:12] for line in told} <= {b"HTTP/1.1 200", b"HTTP/1.1 503", b""}
        assert not [line for line in server.log_lines() if line["event"] == "connection_not_accepted"]
        assert server.errors.stat().st_size < 100_000
        assert sum(line.startswith(b"HTTP/1.1 200") for line in told) > 100
