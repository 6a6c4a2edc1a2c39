"""Prefect, where a flow asks for it: an API that dies with its process, retries, and a lock on the project.

A flow is a plain function that calls its steps through `task`. Run plainly, the steps are plain calls; under
`run_flow` the function becomes a Prefect flow run and each step a task run. Prefect is imported only then.
"""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import filelock

from ..errors import Busy, ProjectError
from ..settings import QUIET

P = ParamSpec("P")
R = TypeVar("R")

START_SECONDS = 120
RETRIES = 3
FIRST_DELAY = 1.0

_FAULTS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError)
"""Faults of a program, which trying again does not mend."""

_under_prefect: ContextVar[bool] = ContextVar("under_prefect", default=False)


def run_flow(name: str, body: Callable[[], R]) -> R:
    """Run `body` as a Prefect flow run; needs an API, see `api`."""
    from prefect import flow

    # Defined here: Prefect would send the arguments of a flow to its API, and ours hold secrets and open files.
    def run() -> R:
        return inside(body)

    return flow(name=name, flow_run_name=f"{name} by process {os.getpid()}")(run)()


def inside(body: Callable[[], R]) -> R:
    """Call `body` from within a flow run, so that its steps become task runs."""
    token = _under_prefect.set(True)
    try:
        return body()
    finally:
        _under_prefect.reset(token)


def task(name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a step that touches the world: tried again, later and later, unless it failed for a reason of its own."""
    if not _under_prefect.get():
        return _retried(function, *args, **kwargs)
    from prefect import task as prefect_task
    from prefect.cache_policies import NO_CACHE
    from prefect.tasks import exponential_backoff

    def step() -> R:
        return function(*args, **kwargs)

    decorated = prefect_task(
        name=name,
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(backoff_factor=FIRST_DELAY),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(step)
    return decorated()


@contextmanager
def api(home: Path, meanwhile: Callable[[], object] = lambda: None, ephemeral: bool = True) -> Iterator[bool]:
    """Make a Prefect API reachable; yields whether it had to start one.

    The one that PREFECT_API_URL names is used if there is one. Otherwise a server of this process's own is
    started on a free port, with its database in `home`; it ends with this process, however that ends.
    It takes seconds to start, in which `meanwhile` is called. A server that is not `ephemeral` also runs schedules.

    Raises:
        ProjectError: the server does not start.
    """
    os.environ.update(QUIET)
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if "PREFECT_API_URL" in os.environ:
        meanwhile()
        yield False
        return
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    own = {"PREFECT_HOME": str(home.absolute()), "PREFECT_API_URL": url}
    os.environ.update(own)
    log = home / "server.log"
    with log.open("wb") as output:
        # Its standard input is this process's life line: the server ends when it closes.
        server = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.prefect_server", str(port), str(int(ephemeral))],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        import prefect  # noqa: F401  (its import overlaps with the server's start)

        meanwhile()
        _wait(server, url, log)
        yield True
    finally:
        for name in own:
            os.environ.pop(name, None)
        assert server.stdin is not None
        _send_logs()
        server.stdin.close()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def crash_abandoned(name: str) -> int:
    """Mark runs of a flow that a killed process left as running; returns how many. Hold the project's lock."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    )
    with get_client(sync_client=True) as client:
        left = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[name])), flow_run_filter=running)
        for run in left:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
    return len(left)


@contextmanager
def exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the project for one process; the operating system frees it when the process dies.

    Raises:
        Busy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f".{name}.pid"
    lock = filelock.FileLock(folder / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        pid = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        raise Busy(f"another `{name}` is at work in this project (process {pid}); wait for it to end") from None
    try:
        holder.write_text(str(os.getpid()), encoding="utf-8")
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
    return not isinstance(error, _FAULTS)


def _retried(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    for attempt in range(RETRIES):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not _is_transient(error):
                raise
            time.sleep(FIRST_DELAY * 2**attempt * random.uniform(1, 1.5))  # noqa: S311
    return function(*args, **kwargs)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ProjectError(f"Prefect's server did not start (exit status {server.poll()}); its output is in {log}")
