"""Starts servers: one in this process, or several that share an address and are started again when they die."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.auth.api_keys import at_start
from flywheel_ml.serving.observability import multiprocess
from flywheel_ml.serving.observability.logs import logger, unify_logging
from flywheel_ml.serving.observability.tracing import is_configured
from flywheel_ml.serving.process.sockets import announce, beside, listen
from flywheel_ml.utils.errors import ProjectError, ServingError

RESPAWN_SECONDS = 1.0
"""Least time between two starts of one worker."""
LOOK_SECONDS = 0.2
STOP_SECONDS = 20.0
"""How long workers may take to stop after they drained."""

# `worker` is imported where it is used: a supervisor, or a start that is refused, needs none of its libraries.


def run(project: Project, settings: Settings, host: str, port: int, workers: int) -> None:
    """Serve until SIGTERM or SIGINT; prints one line with the address once requests are answered.

    Args:
        project: whose features the models need.
        settings: where things are, limits and keys.
        host: name or address to listen on.
        port: 0 for a free one.
        workers: processes; each loads the model and writes a log file of its own.

    Raises:
        ConfigError: production mode without an API key, a prediction log that cannot be opened, or traces that cannot
            be sent as the environment asks.
        ServingError: the address is taken, or a worker cannot start.
    """
    at_start(settings)
    is_configured(os.environ)
    unify_logging()
    with listen(host, port, several=workers > 1) as listener:
        if workers == 1:
            from flywheel_ml.serving.process.worker import serve

            serve(project, settings, listener, lambda: announce(listener))
        else:
            with multiprocess.folder() as counts:
                Supervisor(project, settings, listener, workers, counts).run()


class Supervisor:
    """Keeps `workers` processes serving one address; `counts` is the folder that they count in."""

    def __init__(
        self, project: Project, settings: Settings, listener: socket.socket, workers: int, counts: Path
    ) -> None:
        self._project = project
        self._settings = settings
        self._listener = listener
        self._count = workers
        self._counts = counts
        # A fork would copy threads of the model runtime in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._stopping = False

    def run(self) -> None:
        """Watch the workers until a signal comes; then let them drain.

        Raises:
            ServingError: one stopped before all were ready.
        """
        for sent in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sent, self._stop)
        log = logger()
        announced = False
        try:
            for number in range(self._count):
                self._workers.append(self._start(number))
            while not self._stopping:
                time.sleep(LOOK_SECONDS)
                for worker in self._workers:
                    worker.note_ready(log)
                if not announced and all(worker.ready for worker in self._workers):
                    announced = True
                    announce(self._listener)
                for number, worker in enumerate(self._workers):
                    if worker.process.is_alive() or self._stopping:
                        continue
                    if not announced:
                        raise ServingError(
                            f"worker {number} stopped before it was ready (exit status {worker.process.exitcode})"
                        )
                    multiprocess.forget(self._counts, number)
                    if time.monotonic() - worker.started >= RESPAWN_SECONDS:
                        log.error("worker_died", worker=number, status=worker.process.exitcode)
                        self._workers[number] = self._start(number)
        finally:
            self._end()

    def _start(self, number: int) -> "_Worker":
        receiver, sender = self._context.Pipe(duplex=False)
        arguments = (
            self._project,
            self._settings,
            self._listener,
            sender,
            number,
            self._count,
            os.getpid(),
            self._counts,
        )
        process = self._context.Process(target=_work, args=arguments, name=f"worker-{number}")
        process.start()
        sender.close()
        return _Worker(number, process, receiver)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_seconds + STOP_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()


class _Worker:
    def __init__(self, number: int, process: BaseProcess, said_ready: Connection) -> None:
        self.number = number
        self.process = process
        self.started = time.monotonic()
        self.ready = False
        self._said_ready = said_ready

    def note_ready(self, log: FilteringBoundLogger) -> None:
        if not self.ready and self._said_ready.poll():
            try:
                self.ready = self._said_ready.recv()
            except EOFError:
                return  # It died; the next look at the process shows it.
            log.info("worker_ready", worker=self.number, pid=self.process.pid)


def _work(
    project: Project,
    settings: Settings,
    listener: socket.socket,
    ready: Connection,
    number: int,
    workers: int,
    parent: int,
    counts: Path,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unify_logging()
    multiprocess.join(counts, number)
    from flywheel_ml.serving.process.worker import serve

    try:
        with beside(listener) as own:
            serve(project, settings, own, lambda: ready.send(True), number, workers, parent, counts)
    except ProjectError as error:
        print(f"worker {number}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
