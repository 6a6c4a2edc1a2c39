"""Starts workers as processes, and defines the messages between a supervisor and a worker.

A message is a datagram: a word, optionally followed by text. A separate thread of the worker sends its current state
every second, so a long call of the model does not look like a hung worker, and a lost message does no harm.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel_ml.core.project import import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.observability import multiprocess
from flywheel_ml.serving.observability.logs import describe_error, unify_logging
from flywheel_ml.serving.process.sockets import bind_alongside
from flywheel_ml.utils.errors import ProjectError

if TYPE_CHECKING:
    from flywheel_ml.serving.process.worker import DrainingServer

ALIVE_SECONDS = 1.0
"""Interval between two messages of a worker."""
START_SECONDS = 120.0
"""Maximum time until a process sends its first message, and until a new worker of a reload is ready."""
MAX_MESSAGE = 1000

STARTING, READY, FAILED = b"starting", b"ready", b"failed"
"""States of a worker; the text of `READY` is why /readyz returns 503, that of `FAILED` is why the worker stops."""
LISTENER = b"listener"
"""Asks a worker for its socket; the reply contains it."""
RETIRE = b"retire"
"""Asks a worker to leave new connections to its successor, and to stop."""

# A fork would copy threads of the model runtime in whatever state they are.
_context = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Configuration that all workers of a server share.

    Attributes:
        project: `module:attribute` of the project, which each worker imports itself.
        settings: paths, limits and keys.
        listener: the socket that holds the address.
        workers: number of workers.
        counts: the folder for their metrics.
        supervisor: process id of the supervisor.
    """

    project: str
    settings: Settings
    listener: socket.socket
    workers: int
    counts: Path
    supervisor: int = field(default_factory=os.getpid)


class WorkerProcess:
    """A worker process, as its supervisor sees it; creating one starts the process.

    Args:
        config: configuration that all workers share.
        number: number of this worker.
        inherited: the socket of the worker that it replaces; if None, it creates its own.

    Attributes:
        started_at: `time.monotonic`.
        is_ready: whether it has answered requests.
        refusal: why /readyz returns 503; empty if it does not, or if this is not known yet.
        listener: its socket, once it was requested and received.
    """

    def __init__(self, config: WorkerConfig, number: int, inherited: socket.socket | None = None) -> None:
        self.number = number
        self.started_at = time.monotonic()
        self.is_ready = False
        self.refusal = ""
        self.listener: socket.socket | None = None
        self._failure = ""
        self._silent_looks: int | None = None
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._control.setblocking(False)
        arguments = (config, number, theirs, inherited)
        self._process: BaseProcess = _context.Process(target=_work, args=arguments, name=f"worker-{number}")
        with theirs:
            self._process.start()

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status as in `multiprocessing`: negative for a signal, None while it runs."""
        return self._process.exitcode

    @property
    def reason(self) -> str:
        """Why it ended, as far as known."""
        return self._failure or f"exit status {self.exit_status}"

    def is_alive(self) -> bool:
        """Whether the process runs; if it has ended, its last messages are read first."""
        if self._process.is_alive():
            return True
        self.look()
        return False

    def look(self) -> None:
        """Read the messages that it has sent since the last look."""
        if self._silent_looks is not None:
            self._silent_looks += 1
        with suppress(BlockingIOError):
            while True:
                message, descriptors, *_ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
                self._silent_looks = 0
                self._understand(message, descriptors)

    def _understand(self, message: bytes, descriptors: list[int]) -> None:
        word, _, text = message.partition(b" ")
        if descriptors:
            self.forget_listener()
            self.listener = socket.socket(fileno=descriptors[0])
        elif word == READY:
            self.is_ready, self.refusal = True, text.decode(errors="replace")
        elif word == FAILED:
            self._failure = text.decode(errors="replace")

    def is_hung(self, looks: float) -> bool:
        """Whether it sent no message for more than `looks` looks, or no first message within `START_SECONDS`.

        Looks are counted, not seconds: while the whole machine is asleep, the supervisor does not look either.
        """
        if self._silent_looks is None:
            return time.monotonic() - self.started_at > START_SECONDS
        return self._silent_looks > looks

    def ask_for_listener(self) -> None:
        """Ask it to send its socket."""
        self._ask(LISTENER)

    def forget_listener(self) -> None:
        """Close this process's copy of its socket."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def retire(self) -> None:
        """Ask it to stop once its connections have ended; a worker that was never ready stops immediately."""
        if self.is_ready:
            self._ask(RETIRE)
        else:
            self.terminate()

    def _ask(self, word: bytes) -> None:
        with suppress(OSError):  # It died or is hung; other checks detect both.
            self._control.send(word)

    def terminate(self) -> None:
        """Ask it to drain and stop."""
        self._process.terminate()

    def kill(self, reason: str) -> None:
        """Kill it."""
        self._failure = reason
        self._process.kill()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` until it has stopped, then kill it."""
        self._process.join(max(0.0, seconds))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def close(self) -> None:
        """Release its resources in this process, after it has stopped."""
        self.forget_listener()
        self._control.close()
        self._process.close()


class SupervisorLink:
    """The worker's end of the link: sends the worker's state, and follows the supervisor's requests."""

    def __init__(self, control: socket.socket) -> None:
        self.listener: socket.socket | None = None
        self._control = control
        self._server: DrainingServer | None = None
        control.settimeout(ALIVE_SECONDS)
        threading.Thread(target=self._attend, name="supervisor-link", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether requests have been answered."""
        return self._server is not None

    def on_ready(self, server: "DrainingServer") -> None:
        """Report that requests are answered from now on."""
        self._server = server
        self._say(self._state())

    def on_failed(self, error: Exception) -> None:
        """Report that the worker cannot start."""
        reason = str(error)
        if not isinstance(error, ProjectError):
            own = [frame for frame in describe_error(error)["where"] if not frame.startswith("<")]
            reason = ", at ".join([f"{type(error).__name__}: {error}", *own[-1:]])
        self._say(f"{FAILED.decode()} {' '.join(reason.split())}".encode()[:MAX_MESSAGE])

    def _state(self) -> bytes:
        return STARTING if self._server is None else f"{READY.decode()} {self._server.refusal}".encode()[:MAX_MESSAGE]

    def _say(self, message: bytes) -> None:
        with suppress(OSError):  # The supervisor has ended, which the server notices, or it is not reading.
            self._control.send(message)

    def _attend(self) -> None:
        is_listener_wanted = False
        while True:
            self._say(self._state())
            try:
                request = self._control.recv(MAX_MESSAGE)
            except TimeoutError:
                request = b""
            # A worker that is starting has no socket yet, and sends it as soon as it has one.
            is_listener_wanted |= request == LISTENER
            if is_listener_wanted and self.listener is not None:
                is_listener_wanted = False
                with suppress(OSError):
                    socket.send_fds(self._control, [LISTENER], [self.listener.fileno()])
            if request == RETIRE and self._server is not None:
                self._server.retire()


def _work(config: WorkerConfig, number: int, control: socket.socket, inherited: socket.socket | None) -> None:
    for ignored in (signal.SIGINT, signal.SIGHUP):  # A terminal sends them to the supervisor too, which decides.
        signal.signal(ignored, signal.SIG_IGN)
    unify_logging()
    multiprocess.register_worker(config.counts, number)
    link = SupervisorLink(control)
    try:
        with inherited or bind_alongside(config.listener) as own:
            link.listener = own
            from flywheel_ml.serving.process.worker import serve

            serve(
                import_reference(config.project),
                config.settings,
                own,
                link.on_ready,
                number,
                config.workers,
                config.supervisor,
                config.counts,
            )
    except Exception as error:
        if link.is_ready and not isinstance(error, ProjectError):
            raise
        link.on_failed(error)
        sys.exit(error.exit_code if isinstance(error, ProjectError) else 1)
