"""Slow clients, large requests and overload: the server rejects them immediately and still serves other clients."""

import asyncio
import json
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.errors.problems import ProblemDocument
from flywheel_ml.serving.prediction.batcher import MAX_INLINE_BODY_BYTES
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.protocol_clients import send_arrow, to_arrow_stream
from library.helpers.servers import Server, connect, read_all, wait_for

SOON = 5.0
"""Seconds; far more than it takes here, far less than the client would wait."""


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Server]:
    """A server with little patience and few places."""
    home = tmp_path_factory.mktemp("guarded_server")
    ServingFolder(home / "serving", bundle_path).roll_out("1")
    patience = dict.fromkeys(
        ("ML_HEADER_TIMEOUT_SECONDS", "ML_BODY_TIMEOUT_SECONDS", "ML_KEEP_ALIVE_TIMEOUT_SECONDS"), "0.5"
    )
    with Server(home, **patience, ML_MAX_CONCURRENT_REQUESTS="4") as running:
        yield running


def request_for(*instances: Any) -> bytes:
    body = json.dumps({"instances": instances}).encode()
    return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


UNFIT = request_for(*[{}] * 20) * 500
"""Requests with long answers."""


def drip_until_closed(connection: socket.socket, drop: bytes) -> None:
    ended = time.monotonic() + SOON
    try:
        while time.monotonic() < ended:
            connection.sendall(drop)
            time.sleep(0.05)
    except ConnectionError:
        return
    pytest.fail("the server listened on")


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTT", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n"])
def test_endless_head_closes_the_connection(guarded_server: Server, sent: bytes) -> None:
    with connect(guarded_server) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_slow_head_after_a_response_closes_the_connection(guarded_server: Server) -> None:
    with connect(guarded_server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        drip_until_closed(connection, b"X-Drip: 1\r\n")


@pytest.mark.parametrize("length", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_endless_body_gets_408(guarded_server: Server, length: bytes) -> None:
    with connect(guarded_server) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n1\r\n{")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert ProblemDocument.model_validate_json(body).type == "urn:problem:body-too-slow"


def test_slow_body_after_a_response_closes_the_connection(guarded_server: Server) -> None:
    with connect(guarded_server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")
        drip_until_closed(connection, b"x")


@pytest.mark.parametrize("asked", [request_for({}), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_idle_connection_is_closed_after_the_timeout(guarded_server: Server, asked: bytes) -> None:
    with connect(guarded_server) as connection:
        for _ in range(4):  # Each within the time, all together beyond it.
            connection.sendall(asked)
            assert connection.recv(4096).startswith(b"HTTP/1.1 ")
            time.sleep(0.25)
        assert read_all(connection) == b""


def test_empty_lines_do_not_keep_a_connection_open(guarded_server: Server) -> None:
    with connect(guarded_server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        drip_until_closed(connection, b"\r\n")


def test_client_that_does_not_read_is_disconnected(guarded_server: Server) -> None:
    with connect(guarded_server) as connection:
        drip_until_closed(connection, UNFIT)


@pytest.mark.parametrize(("ahead", "is_answered"), [(32, True), (200, False)])
def test_pipelined_requests_are_limited(server: Server, ahead: int, is_answered: bool) -> None:
    # With another client connected, a request waits for the next batch, and pipelined ones wait for its response.
    with connect(server), connect(server) as connection:
        connection.sendall(request_for({}) * ahead)
        found = b""
        with suppress(ConnectionError):
            while found.count(b"HTTP/1.1 422") < ahead and (more := connection.recv(65536)):
                found += more
    assert (found.count(b"HTTP/1.1 422") == ahead) == is_answered


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_unread_responses_do_not_accumulate(server: Server) -> None:
    before, ended = memory(server), time.monotonic() + 4 * SOON
    # With another client connected, requests wait for the next batch, and pipelined ones wait for their responses.
    with connect(server), connect(server) as connection:
        connection.settimeout(0.5)
        try:
            while time.monotonic() < ended:
                connection.sendall(UNFIT)
            pytest.fail("the server listened on")
        except (TimeoutError, ConnectionError):
            pass
    assert memory(server) - before < 20_000


LARGE_HEADS = {
    "many headers": b"X: 1\r\n" * 10_000,
    "one header": b"X: " + b"1" * 100_000 + b"\r\n",
    "one endless header": b"X: " + b"1" * 1_000_000,
    "a little too many": b"X-Pad: 12345\r\n" * 1_500,
}


@pytest.mark.parametrize("path", ["/predict", "/healthz", f"/{'x' * 50_000}"])
@pytest.mark.parametrize("headers", LARGE_HEADS.values(), ids=LARGE_HEADS)
@pytest.mark.parametrize("piece", [1_000_000, 3_000])
def test_head_beyond_the_limit_gets_431(guarded_server: Server, path: str, headers: bytes, piece: int) -> None:
    sent = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%b\r\n" % (path.encode(), headers)
    with connect(guarded_server) as connection:
        try:
            for at in range(0, len(sent), piece):
                connection.sendall(sent[at : at + piece])
                time.sleep(0.0001)
        except OSError:
            pass
        try:
            told = read_all(connection)
        except ConnectionResetError:
            return  # Its answer was lost to what it still sent.
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431")
    assert ProblemDocument.model_validate_json(body).type == "urn:problem:head-too-large"


def test_endless_empty_lines_close_the_connection(guarded_server: Server) -> None:
    with connect(guarded_server) as connection:
        drip_until_closed(connection, b"\r\n" * 5_000)
    assert not [line for line in guarded_server.log_lines() if line["level"] == "error"]


def test_large_head_is_accepted_up_to_the_limit(guarded_server: Server) -> None:
    padded = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Pad: %b\r\n\r\n" % (b"1" * 15_000)
    body = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"1" * 300_000
    with connect(guarded_server) as connection:
        sent = body + padded * 5 + padded.replace(b"Host: x", b"Connection: close")
        for at in range(0, len(sent), 7_000):
            connection.sendall(sent[at : at + 7_000])
        assert read_all(connection).count(b"HTTP/1.1 200") == 6


def test_slow_clients_take_no_slots(guarded_server: Server, example: dict[str, Any]) -> None:
    slow = [connect(guarded_server) for _ in range(40)]
    try:
        for at, connection in enumerate(slow):
            connection.sendall(request_for(example)[: -1 if at % 2 else 20])
        with guarded_server.client() as client:
            assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
    finally:
        for connection in slow:
            connection.close()
    wait_for(lambda: in_flight(guarded_server) == 1)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_rejected(guarded_server: Server, opening: str) -> None:
    with guarded_server.client() as client:
        for depth in (100, 1_000_000):
            body = '{"instances": [{"x": ' + opening * depth
            response = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == httpx.codes.BAD_REQUEST


async def closed_loop(server: Server, request: bytes, seconds: float, answers: list[tuple[bytes, float]]) -> None:
    """One client that never pauses; notes the head of each answer and the seconds it took."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        sent = time.monotonic()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        answers.append((head, time.monotonic() - sent))
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("times", [1, 500], ids=["small", "large"])
def test_disconnected_clients_keep_slots_until_work_ends(
    guarded_server: Server, instances: list[Any], times: int
) -> None:
    request = request_for(*instances[:1] * times)
    assert (len(request) > MAX_INLINE_BODY_BYTES) == (times > 1)

    def status() -> int:
        with guarded_server.client() as client:
            return client.post("/predict", json={"instances": instances[:1]}).status_code

    assert status() == httpx.codes.OK
    with (
        closing(sqlite3.connect(f"{guarded_server.log}/serve-0.db", isolation_level=None)) as other,
        ExitStack() as leaving,
    ):
        other.execute("BEGIN IMMEDIATE")
        for _ in range(4):
            leaving.enter_context(connect(guarded_server)).sendall(request)
        wait_for(lambda: in_flight(guarded_server) == 5)
        leaving.close()
        time.sleep(0.2)
        assert in_flight(guarded_server) == 5
        assert status() == httpx.codes.SERVICE_UNAVAILABLE
        other.execute("ROLLBACK")
    wait_for(lambda: status() == httpx.codes.OK, seconds=2)


def in_flight(server: Server) -> float:
    """How many requests the server works on, this one among them."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("http_requests_in_flight "))


@pytest.mark.chaos
def test_overload_is_rejected_immediately_and_recovers(guarded_server: Server, example: dict[str, Any]) -> None:
    answers: list[tuple[bytes, float]] = []

    async def crowd() -> None:
        await asyncio.gather(*(closed_loop(guarded_server, request_for(example), 5.0, answers) for _ in range(40)))

    asyncio.run(crowd())
    refused = [(head, seconds) for head, seconds in answers if not head.startswith(b"http/1.1 200")]
    assert refused
    assert len(refused) < len(answers)
    assert all(head.startswith(b"http/1.1 503") and b"\r\nretry-after: 1\r\n" in head for head, _ in refused)
    assert max(seconds for _, seconds in answers) < SOON
    # The last hundredth belongs to whatever else runs here, the crowd itself among it.
    assert sorted(seconds for _, seconds in refused)[len(refused) * 99 // 100] < 0.2
    left = time.monotonic()
    with guarded_server.client() as client:
        assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
        assert "http_requests_rejected_total 0.0" not in client.get("/metrics").text
    assert time.monotonic() - left < 2


class TestFraming:
    """The answer's head and body travel together, whatever the request looks like."""

    def test_two_requests_in_one_packet_get_two_responses(
        self, guarded_server: Server, example: dict[str, Any]
    ) -> None:
        with connect(guarded_server) as connection:
            ending = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            connection.sendall(request_for(example) + ending)
            assert read_all(connection).count(b"HTTP/1.1 200") == 2

    def test_expect_100_continue_is_answered(self, guarded_server: Server, example: dict[str, Any]) -> None:
        head, _, body = request_for(example).partition(b"\r\n\r\n")
        with connect(guarded_server) as connection:
            connection.sendall(head + b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
            assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            assert read_all(connection).startswith(b"HTTP/1.1 200")

    def test_head_is_answered_without_a_body(self, guarded_server: Server) -> None:
        with connect(guarded_server) as connection:
            connection.sendall(b"HEAD /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(connection).endswith(b"\r\n\r\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_worker_memory_stays_within_limits(folder: ServingFolder, tmp_path: Path, instances: list[Any]) -> None:
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        pytest.skip("what measures coverage weighs, too")
    folder.roll_out("1")
    with Server(tmp_path) as server, server.client() as client:
        client.post("/predict", json={"instances": instances})
        assert memory(server) < 150_000
        for _ in range(10):
            assert send_arrow(client, to_arrow_stream(instances * 10), Accept=ARROW).status_code == httpx.codes.OK
        assert memory(server) < 200_000


def memory(server: Server) -> int:
    """The server's memory in KB."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
