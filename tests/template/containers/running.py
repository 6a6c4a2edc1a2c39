"""Containers of the serving image, as the docs say to run them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from containers.engine import Engine

KEY = "choose-one"
READY_S = 60.0
LIMITS = ("--memory", "512m", "--pids-limit", "256", "--log-opt", "max-size=10m")
LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


class Container:
    """A container of the server."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name

    def address(self, port: int = 8000) -> str:
        """Return where the port of the container is published."""
        published = self.engine.run("port", self.name, f"{port}/tcp").splitlines()[0]
        return f"http://{published}"

    def client(self, port: int = 8000) -> httpx.Client:
        """Return a client with the key, that ignores proxies."""
        headers = {"X-API-Key": KEY}
        return httpx.Client(
            base_url=self.address(port), headers=headers, trust_env=False, timeout=30
        )

    def state(self) -> dict[str, Any]:
        """Return the engine's view: status, health, exit code, whether memory ran out."""
        state: dict[str, Any] = self.engine.inspect(self.name)["State"]
        return state

    def wait_for_health(self, status: str, patience_s: float = READY_S) -> None:
        """Wait until the engine's own health check reports a status."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            state = self.state()
            assert state["Status"] == "running", self.engine.call("logs", self.name)
            if state["Health"]["Status"] == status:
                return
            time.sleep(0.2)
        raise AssertionError(f"{self.name} is not {status}: {state['Health']}")

    def wait_until_ready(self, port: int = 8000, route: str = "/readyz") -> float:
        """Wait until a route answers with 200; returns the seconds that it took."""
        start = time.monotonic()
        with self.client(port) as client:
            while time.monotonic() - start < READY_S:
                try:
                    if client.get(route).status_code == 200:
                        return time.monotonic() - start
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        raise AssertionError(self.engine.call("logs", self.name).stderr[-3000:])


@contextmanager
def run_server(
    engine: Engine,
    image: str,
    serving_folder: Path,
    *options: str,
    command: tuple[str, ...] = (),
    port: int = 8000,
) -> Iterator[Container]:
    """Run the server as docs/containers.md does, and remove it."""
    network = f"test-{time.monotonic_ns()}"
    engine.run("network", "create", network)
    given = ["--network", network, "--publish", f"127.0.0.1::{port}", "--stop-timeout", "30"]
    mounts = ["--volume", f"{serving_folder}:/srv/serving:ro", "--env", f"ML_API_KEYS={KEY}"]
    try:
        name = engine.run(
            "run", "--detach", *given, *mounts, *LOCKED, *LIMITS, *options, image, *command
        )
        try:
            yield Container(engine, name)
        finally:
            engine.call("rm", "--force", "--volumes", name)
    finally:
        engine.call("network", "rm", network)
