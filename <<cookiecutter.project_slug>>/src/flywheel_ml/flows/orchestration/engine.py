"""Optional Prefect integration: a temporary API server, retries, and a lock on the project.

A flow is a plain function that calls its steps through `task`. Without Prefect, the steps are plain calls; under
`run_flow` the function becomes a Prefect flow run and each step a task run. Prefect is imported only then.
"""

import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import filelock
from dotenv import dotenv_values

from flywheel_ml.core.settings import QUIET
from flywheel_ml.utils.errors import Busy, ConfigError, ProjectError
from flywheel_ml.utils.process import is_alive

P = ParamSpec("P")
R = TypeVar("R")

START_SECONDS = 120
SERVER_LOG = "server.log"


class RetryPolicy(NamedTuple):
    """Number of retries of a step, and the first delay in seconds; each delay is twice the previous one."""

    retries: int = 3
    first_delay: float = 1.0


retry_policy: ContextVar[RetryPolicy] = ContextVar("retry_policy", default=RetryPolicy())  # noqa: B039 (a named tuple)

_RUN_NAME = re.compile(r".+ by process (\d+) on (.+)")
_PROGRAMMING_ERRORS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError)
"""Programming errors, which a retry cannot fix."""

_under_prefect: ContextVar[bool] = ContextVar("under_prefect", default=False)


def run_flow(name: str, body: Callable[[], R]) -> R:
    """Run `body` as a Prefect flow run; needs an API, see `connect_api`."""
    from prefect import flow

    # Defined here without arguments: Prefect sends arguments to its API, and ours contain secrets and open files.
    def run() -> R:
        return call_in_flow(body)

    return flow(name=name, flow_run_name=f"{name} by process {os.getpid()} on {socket.gethostname()}")(run)()


def call_in_flow(body: Callable[[], R]) -> R:
    """Call `body` inside a flow run, so that its steps become task runs."""
    token = _under_prefect.set(True)
    try:
        return body()
    finally:
        _under_prefect.reset(token)


def task(name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a step that uses external systems; retry it with growing delays, except after a permanent error.

    `retry_policy` sets the number of retries and the delay.
    """
    if not _under_prefect.get():
        return _call_with_retries(function, *args, **kwargs)
    from prefect import task as prefect_task
    from prefect.cache_policies import NO_CACHE
    from prefect.tasks import exponential_backoff

    def step() -> R:
        return function(*args, **kwargs)

    retries, first_delay = retry_policy.get()
    decorated = prefect_task(
        name=name,
        retries=retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=first_delay),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(step)
    return decorated()


def has_api() -> bool:
    """Whether the environment or .env names a Prefect API."""
    return "PREFECT_API_URL" in {**dotenv_values(".env"), **os.environ}


@contextmanager
def connect_api(home: Path, meanwhile: Callable[[], object] = lambda: None, scheduling: bool = False) -> Iterator[int]:
    """Connect to a Prefect API, and mark the runs of killed processes as crashed; yields their number.

    PREFECT_API_URL selects the API. If it is not set, a private server starts on a free port, with its database in
    `home`; it stops with this process, even if that is killed.

    Args:
        meanwhile: called while the server starts, which takes seconds.
        scheduling: whether the server also runs schedules; only one process at a time may do that.

    Raises:
        ProjectError: the server does not start.
        ConfigError: no server answers at PREFECT_API_URL.
    """
    os.environ.update(QUIET)
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if has_api():
        meanwhile()
        _check_api()
        yield _mark_abandoned_runs(scheduled=False)
        return
    with start_server(home, whole=scheduling) as (process, url):
        own = {"PREFECT_HOME": str(home.absolute()), "PREFECT_API_URL": url}
        os.environ.update(own)
        try:
            import prefect  # noqa: F401  (its import overlaps with the start of the server)

            meanwhile()
            wait_for_server(process, f"{url}/health", "Prefect", home / SERVER_LOG)
            yield _mark_abandoned_runs(scheduling)
        finally:
            # Also after a failure: otherwise Prefect waits for its logs at exit, when no server can receive them.
            _send_logs()
            for name in own:
                os.environ.pop(name, None)


@contextmanager
def start_server(home: Path, whole: bool, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a Prefect server and yield it with the URL of its API; it stops with the block or with this process.

    Args:
        home: folder of its database.
        whole: whether to include the web UI and the scheduler services.
        port: port on 127.0.0.1; 0 selects a free one.
    """
    home.mkdir(parents=True, exist_ok=True)
    # Bind the socket here and pass it on, so that no other process can take the port in between.
    with socket.create_server(("127.0.0.1", port)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/api"
        command = ["-m", f"{__package__}.prefect_server", str(bound.fileno()), str(int(whole))]
        environ = {"PREFECT_HOME": str(home.absolute()), "PREFECT_API_URL": url}
        process = spawn(command, home / SERVER_LOG, environ, pass_fds=(bound.fileno(),))
    with stop_on_exit(process):
        yield process, url


def spawn(
    command: Sequence[str], log: Path, environ: Mapping[str, str], pass_fds: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start Python with a command that stops when its standard input closes, see `die_with_parent`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            env={**os.environ, **environ},
            start_new_session=True,
        )


@contextmanager
def stop_on_exit(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process of `spawn` at the end of the block."""
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def wait_for_server(process: subprocess.Popen[bytes], url: str, name: str, log: Path) -> None:
    """Wait until a server answers at a URL.

    Raises:
        ProjectError: the process ended, or did not answer in time.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ProjectError(f"{name}'s server did not start (exit status {process.poll()}); its output is in {log}")


def _check_api() -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if fault := client.api_healthcheck():
            raise ConfigError(
                f"PREFECT_API_URL: no server answers at '{client.api_url}' ({fault}); unset it, or correct it"
            )


def _mark_abandoned_runs(scheduled: bool) -> int:
    """Mark runs of dead local processes, and if `scheduled` unfinished scheduled runs; return their number."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    unfinished = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    )
    crashed = 0
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=unfinished):
            named = _RUN_NAME.fullmatch(run.name)
            gone = bool(named and named[2] == socket.gethostname() and not is_alive(int(named[1])))
            if gone or (scheduled and not named):
                client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
                crashed += 1
    return crashed


@contextmanager
def lock_project(folder: Path, name: str, wait_seconds: float = 0, doing: str | None = None) -> Iterator[None]:
    """Lock the project for one process; the operating system releases the lock when the process dies.

    Args:
        name: name of the lock; `run` locks the whole project.
        doing: the command that holds the lock, for the error message of others; by default the name.

    Raises:
        Busy: another process still holds the lock after `wait_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f".{name}.pid"
    lock = filelock.FileLock(folder / f".{name}.lock", timeout=wait_seconds)
    try:
        lock.acquire()
    except filelock.Timeout:
        verb, _, pid = holder.read_text(encoding="utf-8").partition(" ") if holder.is_file() else (name, "", "")
        process = pid or "unknown"
        raise Busy(f"another `{verb}` is running in this project (process {process}); wait for it to end") from None
    try:
        holder.write_text(f"{doing or name} {os.getpid()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def _send_logs() -> None:
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)


def _may_retry(_task: Any, _run: Any, state: Any) -> bool:
    return _is_transient(state.result(raise_on_failure=False))


def _is_transient(error: object) -> bool:
    if isinstance(error, ProjectError):
        return error.transient
    return not isinstance(error, _PROGRAMMING_ERRORS)


def _call_with_retries(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    retries, first_delay = retry_policy.get()
    for attempt in range(retries):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not _is_transient(error):
                raise
            time.sleep(first_delay * 2**attempt * random.uniform(1, 1.5))  # noqa: S311
    return function(*args, **kwargs)
