"""Keeps the workers of a server alive: restarts dead workers, replaces hung ones, and replaces all for a reload.

uvicorn's `Multiprocess` waits for one worker at a time and handles no signal meanwhile: a stopped worker delayed
SIGTERM by the whole health check (30 of 30 s), and a restart delays it until the old worker has drained. It has no
sockets, numbers or deadlines for workers either: a subclass would reuse little but its signal queue and `terminate`.
"""

import signal
import time
from collections.abc import Callable, Generator
from dataclasses import replace

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.auth.api_keys import load_keys
from flywheel_ml.serving.observability import multiprocess
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.process.reload_signal import ReloadSignal
from flywheel_ml.serving.process.sockets import announce
from flywheel_ml.serving.process.spawning import START_SECONDS, WorkerConfig, WorkerProcess
from flywheel_ml.utils.errors import ProjectError, ServingError

RESPAWN_SECONDS = 1.0
"""Minimum time between two starts of one worker."""
LOOK_SECONDS = 0.2
STOP_SECONDS = 20.0
"""Maximum time for workers to stop after they drained."""


class Supervisor:
    """Keeps as many workers serving one address as the configuration says.

    Args:
        config: configuration that all workers share.
        read_settings: returns the current settings, for a reload.
        reloads: reports whether a reload was requested.
    """

    def __init__(self, config: WorkerConfig, read_settings: Callable[[], Settings], reloads: ReloadSignal) -> None:
        self._config = config
        self._read_settings = read_settings
        self._reloads = reloads
        self._log = logger()
        self._workers: list[WorkerProcess] = []
        self._others: list[WorkerProcess] = []
        """During a reload: the worker that is starting, or the one that is stopping."""
        self._replaced: WorkerProcess | None = None
        """The worker whose successor is being started."""
        self._is_stopping = False

    def run(self) -> None:
        """Watch the workers until a signal arrives; then let them drain.

        Raises:
            ServingError: a worker stopped before all were ready.
        """
        for sent in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sent, self._stop)
        try:
            for number in range(self._config.workers):
                self._workers.append(WorkerProcess(self._config, number))
            self._wait_until_ready()
            self._keep_alive()
        finally:
            self._end()

    def _stop(self, *_: object) -> None:
        self._is_stopping = True

    def _wait_until_ready(self) -> None:
        while not self._is_stopping:
            self._look()
            for worker in self._workers:
                if not worker.is_alive():
                    raise ServingError(f"worker {worker.number} stopped before it was ready: {worker.reason}")
            if all(worker.is_ready for worker in self._workers):
                announce(self._config.listener)
                return

    def _keep_alive(self) -> None:
        reload: Generator[None, None, None] | None = None
        while not self._is_stopping:
            self._look()
            self._restart_dead()
            if reload is None and self._reloads.take():
                reload = self._reload()
            if reload is not None and next(reload, "done") == "done":
                reload = None

    def _look(self) -> None:
        time.sleep(LOOK_SECONDS)
        silence = self._config.settings.worker_timeout_seconds
        for worker in (*self._workers, *self._others):
            was_ready = worker.is_ready
            worker.look()
            if worker.is_ready and not was_ready:
                self._log.info("worker_ready", worker=worker.number, pid=worker.pid)
            if worker.is_hung(silence / LOOK_SECONDS) and worker.is_alive():
                worker.kill(f"it hung: no sign of life for {silence:g} s")

    def _restart_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            if worker is self._replaced or worker.is_alive():
                continue
            multiprocess.remove_worker(self._config.counts, worker.number)
            if time.monotonic() - worker.started_at >= RESPAWN_SECONDS:
                self._log_death(worker)
                worker.close()
                self._workers[place] = WorkerProcess(self._config, worker.number)

    def _log_death(self, worker: WorkerProcess) -> None:
        self._log.error("worker_died", worker=worker.number, status=worker.exit_status, reason=worker.reason)

    def _reload(self) -> Generator[None, None, None]:
        """Replace the workers one by one, one step per iteration; stop at the first that cannot be replaced."""
        self._log.info("reload_started")
        try:
            settings = self._read_settings()
            load_keys(settings)
        except ProjectError as error:
            self._log.error("reload_failed", reason=str(error))
            return
        for place in range(len(self._workers)):
            self._replaced = self._workers[place]
            failure = yield from self._replace(place, self._replaced, replace(self._config, settings=settings))
            self._replaced = None
            if failure:
                self._log.error("reload_failed", reason=failure)
                return
        self._log.info("reload_finished")

    def _replace(self, place: int, old: WorkerProcess, config: WorkerConfig) -> Generator[None, None, str]:
        """Start a new worker and retire the old one once the new one is ready; returns why it failed, or "".

        The new worker inherits the old one's socket: closing it would reset the connections in its queue.
        """
        old.ask_for_listener()
        while old.listener is None and old.is_alive():
            yield
        # Two processes cannot count under one number, so there is one number more than there are workers.
        numbers = {worker.number for worker in self._workers}
        free = next(number for number in range(len(numbers) + 1) if number not in numbers)
        new = WorkerProcess(config, free, old.listener)
        old.forget_listener()
        self._others = [new]
        while not new.is_ready and not _failure(new, old):
            yield
        failure = _failure(new, old)
        if failure:
            leaving = new
            new.kill(failure)
        else:
            leaving = old
            if not old.is_alive():
                self._log_death(old)
            self._config = config
            self._workers[place], self._others = new, [old]
            old.retire()
        yield from self._let_end(leaving)
        self._others = []
        return failure

    def _let_end(self, worker: WorkerProcess) -> Generator[None, None, None]:
        deadline = self._stop_deadline()
        while worker.is_alive():
            if time.monotonic() > deadline:
                worker.kill("it did not stop in time")
            yield
        multiprocess.remove_worker(self._config.counts, worker.number)
        worker.close()

    def _stop_deadline(self) -> float:
        return time.monotonic() + self._config.settings.drain_seconds + STOP_SECONDS

    def _end(self) -> None:
        started = [*self._workers, *self._others]
        for worker in started:
            worker.terminate()
        deadline = self._stop_deadline()
        for worker in started:
            worker.join(deadline - time.monotonic())


def _failure(new: WorkerProcess, old: WorkerProcess) -> str:
    """Return why a worker cannot replace another; empty if it can, or if this is not known yet."""
    if not new.is_alive():
        return f"the new worker stopped before it was ready: {new.reason}"
    if new.is_ready:
        return f"the new worker would not be ready: {new.refusal}" if new.refusal and not old.refusal else ""
    if time.monotonic() - new.started_at > START_SECONDS:
        return f"the new worker was not ready within {START_SECONDS:g} s"
    return ""
