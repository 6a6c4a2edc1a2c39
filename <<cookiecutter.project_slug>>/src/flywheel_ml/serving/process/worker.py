"""One serving process: it drains before it stops, and leaves its socket to a successor in a reload."""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.api.routes import Service
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.tracing import Spans, is_configured
from flywheel_ml.serving.process.connections import (
    ACCEPTS,
    QUEUE,
    ConnectionLimit,
    count_free_descriptors,
    raise_descriptor_limit,
)
from flywheel_ml.serving.process.protocol import Protocol, build_protocol
from flywheel_ml.serving.process.reload_signal import ReloadSignal
from flywheel_ml.utils.errors import ServingError

LONGEST_REQUEST_SECONDS = 10
"""How long a stopping server waits for requests in flight."""

GARBAGE = (50_000, 20, 100)
"""Thresholds of the garbage collector; the rows of a large request are many objects but not garbage."""
SWITCH_SECONDS = 0.001
"""Switch interval between the thread for large requests and the event loop; a fifth of Python's default."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains before it stops.

    After the first signal, /readyz returns 503 while all other routes still answer. The server stops after
    `drain_seconds`, or at a second signal.

    Args:
        config: of uvicorn.
        service: its `draining` is set at the first signal.
        limit: of connections.
        on_ready: called with this server once it accepts requests.
        parent: process id of the supervisor; the server stops when that process ends.
        reloads: reports whether a reload was requested, where there is no supervisor.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        limit: ConnectionLimit,
        on_ready: Callable[["DrainingServer"], None],
        parent: int | None,
        reloads: ReloadSignal | None = None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._limit = limit
        self._on_ready = on_ready
        self._parent = parent
        self._reloads = reloads
        self._is_retiring = False
        self._stop_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, then call `on_ready`."""
        service, connections = self._service, self.server_state.connections
        service.metrics.http.connections.set_function(lambda: len(connections))
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(QUEUE)  # uvicorn's `backlog` is `ACCEPTS`, the number that the loop accepts in a row.
        # Objects that exist now are permanent, so the garbage collector can skip them.
        gc.freeze()
        service.batcher.connections = connections
        self._on_ready(self)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket.accept()" in context["message"] and isinstance(error, OSError):
            self._limit.on_exhausted(error, self.server_state.connections)  # type: ignore[arg-type]
        else:
            loop.default_exception_handler(context)

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        """Begin to drain; a second signal stops the server immediately."""
        if sig == signal.SIGINT and self._parent is not None:
            return  # A terminal also sends it to the supervisor, which forwards its own signal.
        wait = 0.0 if self._service.draining else self._service.settings.drain_seconds
        self._service.draining = True
        self._stop_at = time.monotonic() + wait

    def retire(self) -> None:
        """Leave new connections to another process that has the socket too, and stop once those here end; thread-safe.

        After `drain_seconds` it stops anyway. Until then /readyz answers as before: the address stays in service.
        """
        self._is_retiring = True

    @property
    def refusal(self) -> str:
        """Why /readyz answers 503; empty if it does not."""
        try:
            self._service.require_ready()
        except Problem as problem:
            return problem.detail
        return ""

    def _leave_listeners(self) -> None:
        # Closed in this turn of the loop, they would take connections with them that it has just accepted.
        loop = asyncio.get_running_loop()
        for listener in (one for server in self.servers for one in server.sockets):
            loop.remove_reader(listener.fileno())
        self._stop_at = time.monotonic() + self._service.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Run periodic work ten times a second; returns whether to stop."""
        if self._parent is not None and os.getppid() != self._parent and self._stop_at is None:
            self.handle_exit(signal.SIGTERM, None)
        if self._reloads is not None and self._reloads.take():
            logger().error(
                "reload_failed", reason="a single process cannot be replaced; give --workers 2, or restart it"
            )
        if self._is_retiring and self._stop_at is None:
            self._leave_listeners()
        elif self._stop_at is not None:
            is_left = self._is_retiring and not self.server_state.connections
            self.should_exit = self.should_exit or is_left or time.monotonic() >= self._stop_at
        self._service.metrics.publish()
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.close_if_slow(now)
        stopping = await super().on_tick(counter)
        if (self._service.draining or self._is_retiring) and CLOSE not in self.server_state.default_headers:
            # Otherwise a keep-alive client could send a request into a connection that is being closed.
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return stopping


CLOSE = (b"connection", b"close")


def serve(
    project: Project,
    settings: Settings,
    listener: socket.socket,
    on_ready: Callable[[DrainingServer], None],
    worker: int = 0,
    workers: int = 1,
    parent: int | None = None,
    counts: Path | None = None,
    reloads: ReloadSignal | None = None,
) -> None:
    """Serve on a bound socket until a signal; `counts` is the folder for metrics of several workers.

    Raises:
        ConfigError: production mode without an API key, or a prediction log that cannot be opened.
        ServingError: another process uses the address.
    """
    gc.set_threshold(*GARBAGE)
    sys.setswitchinterval(SWITCH_SECONDS)
    raise_descriptor_limit(settings.max_connections)
    metrics = Metrics(counts)
    metrics.set_worker(worker, workers)
    spans = Spans(metrics, logger(), os.environ) if is_configured(os.environ) else None
    app: FastAPI = import_reference(project.app)(settings, metrics, spans, project.features)
    service: Service = app.state.service

    most = min(settings.max_connections, count_free_descriptors())
    limit = ConnectionLimit(most, metrics, logger())
    config = uvicorn.Config(
        app,
        http=build_protocol(service, limit),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=ACCEPTS,
        timeout_keep_alive=service.settings.keep_alive_timeout_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=LONGEST_REQUEST_SECONDS,
    )
    server = DrainingServer(config, service, limit, on_ready, parent, reloads)

    async def main() -> None:
        # Entered here, not by uvicorn, so that an error at start keeps its type.
        async with app.router.lifespan_context(app):
            await server.serve(sockets=[listener])

    try:
        asyncio.run(main())
    except OSError as error:
        raise ServingError(f"cannot listen: {error.strerror or error}") from None
