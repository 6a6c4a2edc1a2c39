"""What the tests of a running server share."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
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

from flywheel_ml.core import bundle, routing
from flywheel_ml.core.contract import Contract
from flywheel_ml.utils import files

from ..project import PACKAGE

START_SECONDS = 30.0


class Folder:
    """A serving folder, written as a rollout does."""

    def __init__(self, path: Path, bundle_path: Path) -> None:
        self.path = path
        self._source = bundle_path

    def bundle(self, version: str) -> Path:
        """The bundle's folder."""
        return self.path / routing.BUNDLES / version

    def add(
        self, version: str, edit: Callable[[str], str] = str, model: bytes | None = None, **facts: Any
    ) -> routing.Ref:
        """Put a bundle in place: the tiny one with a card of its own, and another contract text, model or facts."""
        path = self.bundle(version)
        shutil.copytree(self._source, path)
        if model is not None:
            (path / bundle.MODEL).write_bytes(model)
        manifest = bundle.Manifest.model_validate_json((path / bundle.MANIFEST).read_text(), strict=False)
        (path / bundle.CARD).write_text(f"version {version}\n")
        contract = path / bundle.CONTRACT
        contract.write_text(edit(contract.read_text()))
        known = {**manifest.model_dump(exclude={"files"}), "contract_sha256": Contract.load(contract).fingerprint()}
        bundle.seal(path, {**known, **facts})
        return self.ref(version)

    def ref(self, version: str) -> routing.Ref:
        """What routing says of a bundle as it is now."""
        return routing.Ref(version=version, digest=files.sha256_file(self.bundle(version) / bundle.MANIFEST))

    def point(
        self,
        champion: routing.Ref | None,
        previous: routing.Ref | None = None,
        challenger: routing.Challenger | None = None,
        shadow: routing.Shadow | None = None,
    ) -> None:
        """Name the bundles that answer."""
        now = routing.Routing(
            name="flights",
            champion=champion,
            previous=previous,
            challenger=challenger,
            shadow=shadow,
            updated_at="2013-11-01T00:00:00+00:00",
        )
        routing.write(self.path, now)

    def roll_out(self, version: str, **facts: Any) -> routing.Ref:
        """Put a bundle in place and make it champion."""
        ref = self.add(version, **facts)
        self.point(ref)
        return ref


class Server:
    """The command `serve` as a process of its own, in `home`, with serving folder `home/serving` and log `home/log`.

    `under` is a command that runs it, and ends by becoming it.
    """

    def __init__(self, home: Path, *options: str, under: Sequence[str] = (), **settings: str) -> None:
        self.home = home
        self._under = under
        self.log = str(home / "log")
        self.errors = home / "stderr.txt"
        self._options = options
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ML_")}
        places = {"ML_SERVING_FOLDER": str(home / "serving"), "ML_PREDICTION_LOG": self.log}
        self._environment = {**inherited, **places, "ML_DRAIN_SECONDS": "0", **settings}

    def __enter__(self) -> Self:
        serve = [sys.executable, "-m", PACKAGE, "serve", "--port", "0", *self._options]
        command = [*self._under, *serve]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=self._environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving on http://"), line + self.errors.read_text()
        self.url = line.removeprefix("serving on ").strip()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of this server; ignores proxies."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=10, **options)

    def raw(self, request: bytes, read: bool = True) -> bytes:
        """Send bytes as they are; the first bytes of what comes back."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
            connection.sendall(request)
            return connection.recv(4096) if read else b""

    def log_lines(self) -> list[dict[str, Any]]:
        """What the server wrote to its log so far."""
        return [json.loads(line) for line in self.errors.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)


class InProcess:
    """An application in this process, started and stopped as a server does; requests do not go over a socket."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._stack.enter_context(self._portal.wrap_async_context_manager(self._app.router.lifespan_context(self._app)))
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://here")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request and its answer."""
        return self._portal.call(partial(self._client.request, method, path, **options))

    def together(self, path: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
        """POST requests that arrive in one turn of the event loop, and their answers."""

        async def all_at_once() -> list[httpx.Response]:
            headers = {"Content-Type": "application/json"}
            return await asyncio.gather(*(self._client.post(path, content=body, headers=headers) for body in bodies))

        return self._portal.call(all_at_once)


def connected(server: Server) -> socket.socket:
    """A connection that says nothing by itself."""
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Load:
    """What a crowd of clients experienced."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def sees(self, count: int) -> None:
        """Wait until that many more answers came."""
        before = len(self.answers)
        eventually(lambda: len(self.answers) >= before + count)


@contextmanager
def load(server: Server, instance: dict[str, Any], clients: int = 4) -> Iterator[Load]:
    """Clients that send one prediction after another while the block runs and `go` is set; they note every failure."""
    seen, ended = Load(), threading.Event()

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

    with at_once(clients, work, ended):
        yield seen


@contextmanager
def at_once(count: int, work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """So many threads at work, which stop when `ended` is set: at the end of the block."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def workers(server: Server) -> dict[int, int]:
    """Worker number → process id, as the server's log tells it; the last start of each."""
    return {line["worker"]: line["pid"] for line in server.log_lines() if line["event"] == "worker_ready"}
