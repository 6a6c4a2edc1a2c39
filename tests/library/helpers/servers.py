"""Helpers for tests of a running server."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI

from flywheel_ml.testing import servers
from library.helpers.project import PACKAGE


class Server(servers.Server):
    """The example's command `serve`."""

    def __init__(self, home: Path, *options: str, under: Sequence[str] = (), **settings: str) -> None:
        super().__init__(PACKAGE, home, *options, under=under, **settings)


class InProcess:
    """An application in this process, with the server's startup and shutdown but without sockets."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._stack.enter_context(self._portal.wrap_async_context_manager(self.app.router.lifespan_context(self.app)))
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://here")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request; returns the response."""
        return self._portal.call(partial(self._client.request, method, path, **options))

    def send_together(self, path: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
        """POST requests that arrive in one iteration of the event loop; returns their responses."""

        async def all_at_once() -> list[httpx.Response]:
            headers = {"Content-Type": "application/json"}
            return await asyncio.gather(*(self._client.post(path, content=body, headers=headers) for body in bodies))

        return self._portal.call(all_at_once)


def connect(server: Server) -> socket.socket:
    """Open a raw connection to the server."""
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


class LoadGenerator:
    """The answers and failures of concurrent clients."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def wait_for_answers(self, count: int) -> None:
        """Wait for N more answers."""
        before = len(self.answers)
        wait_for(lambda: len(self.answers) >= before + count)


@contextmanager
def generate_load(server: Server, instance: dict[str, Any], clients: int = 4) -> Iterator[LoadGenerator]:
    """Run clients that send predictions while the block runs and `go` is set; they record every failure."""
    seen, ended = LoadGenerator(), threading.Event()

    def work() -> None:
        with server.client() as client:
            while not ended.is_set():
                if not seen.go.is_set():
                    time.sleep(0.005)
                    continue
                try:
                    response = client.post("/predict", json={"instances": [instance]})
                except httpx.HTTPError as error:
                    seen.failures.append(repr(error))
                    continue
                if response.status_code == httpx.codes.OK:
                    seen.answers.append(response.json())
                else:
                    seen.failures.append(f"{response.status_code} {response.text}")

    with run_threads(clients, work, ended):
        yield seen


@contextmanager
def run_threads(count: int, work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """Run N threads, which stop when `ended` is set at the end of the block."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def find_workers(server: Server) -> dict[int, int]:
    """Return worker number → process id from the server's log; the last start of each."""
    return {line["worker"]: line["pid"] for line in server.log_lines() if line["event"] == "worker_ready"}
