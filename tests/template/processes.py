"""Commands and servers of a baked project: started in a group of their own, and always ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

PATIENCE_S = 120.0


def make(project: Path, *arguments: str) -> str:
    return run(project, "make", "--no-print-directory", *arguments)


def run(project: Path, *command: str) -> str:
    """Run `command` in `project` to its end; what it printed is shown when it fails."""
    process = start(project, *command, output=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=1800)
    finally:
        stop(process)
    text = output.decode("utf-8", errors="replace")
    assert process.returncode == 0, f"{' '.join(command)}\n{text[-6000:]}"
    return text


def start(
    project: Path, *command: str, output: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start `command` as the head of a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group that `process` heads: politely, then not."""
    for number, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and group_lives(process):
            time.sleep(0.05)
    process.wait(timeout=10)


def group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def running(project: Path, port: int) -> Iterator[None]:
    """Serve the project's champion on `port`, ready to answer; what it printed is shown if not."""
    with tempfile.TemporaryFile() as log:
        process = start(project, "make", "serve", f"PORT={port}", output=log)
        try:
            wait_for_port(port, process)
            wait_until_ready(port)
            yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode("utf-8", errors="replace")[-6000:])
            raise
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended at once, with status {process.returncode}"
        if listens(port):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port}")


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("the server is not ready")
