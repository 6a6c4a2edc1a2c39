"""MLflow's and Prefect's own pages, both with one command."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path

from ..errors import ProjectError
from ..settings import Settings
from . import done
from .progress import Progress

MLFLOW_PORT, PREFECT_PORT = 5000, 4200
START_SECONDS = 120


def show(settings: Settings, progress: Progress, wait: bool = True) -> None:
    """Start both servers, print their addresses, and end them with this process (Ctrl-C).

    Raises:
        ProjectError: one of them does not start.
    """
    mlflow, prefect = _free_port(MLFLOW_PORT), _free_port(PREFECT_PORT)
    home = done.FOLDER / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    commands = {
        f"http://127.0.0.1:{mlflow}": [
            *("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1"),
            *("--backend-store-uri", settings.tracking_uri, "--default-artifact-root", settings.artifact_root),
        ],
        f"http://127.0.0.1:{prefect}": [
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(prefect),
        ],
    }
    with ExitStack() as stack:
        for (address, command), name in zip(commands.items(), ("MLflow", "Prefect"), strict=True):
            log = done.FOLDER / f"{name.lower()}-ui.log"
            with log.open("wb") as output:
                environ = {**os.environ, "PREFECT_HOME": str(home.absolute()), "PREFECT_UI_API_URL": f"{address}/api"}
                server = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, env=environ)
            stack.callback(_end, server)
            with progress.step(name, "starting") as step:
                _wait(server, address, name, log)
                step.note = address
        progress.say("Ctrl-C ends both.")
        if wait:
            while True:
                time.sleep(3600)


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ProjectError("no free port on 127.0.0.1")


def _wait(server: subprocess.Popen[bytes], address: str, name: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ProjectError(f"{name}'s server did not start (exit status {server.poll()}); its output is in {log}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
