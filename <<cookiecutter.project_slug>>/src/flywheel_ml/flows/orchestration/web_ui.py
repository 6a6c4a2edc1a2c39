"""Serves the web UIs of MLflow and Prefect with one command."""

import contextlib
import errno
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import run_state
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.progress import Progress

MLFLOW_PORT, PREFECT_PORT = 5000, 4200


def serve_pages(settings: Settings, progress: Progress) -> None:
    """Start both servers, print their addresses, and serve until Ctrl-C; they stop with this process.

    If ML_TRACKING_URI names an MLflow server, only its address is printed.

    Raises:
        ProjectError: one of them does not start.
    """
    home = run_state.FOLDER / "prefect"
    with ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        # Both start at once; each takes seconds.
        prefect, api = stack.enter_context(engine.start_server(home, whole=True, port=_find_free_port(PREFECT_PORT)))
        servers = [("Prefect", api.removesuffix("/api"), prefect, home / engine.SERVER_LOG)]
        if settings.has_tracking_server:
            with progress.step("MLflow", "") as step:
                step.note = f"{settings.masked_tracking_uri} (ML_TRACKING_URI)"
        else:
            port, log = _find_free_port(MLFLOW_PORT), run_state.FOLDER / "mlflow-ui.log"
            # Disable its nine job workers, which only serve features that need a language model.
            environ = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONPATH": _build_python_path()}
            mlflow = engine.spawn(_build_mlflow_command(settings, port), log, environ)
            stack.enter_context(engine.stop_on_exit(mlflow))
            servers.insert(0, ("MLflow", f"http://127.0.0.1:{port}", mlflow, log))
        for name, address, server, output in servers:
            with progress.step(name, "starting") as step:
                engine.wait_for_server(server, address, name, output)
                step.note = address
        progress.print("Press Ctrl-C to stop both." if len(servers) > 1 else "Press Ctrl-C to stop it.")
        # A plain wait would silently resume after the signal handler of a library, such as Polars.
        while True:
            signal.pause()


def _build_python_path() -> str:
    """Build a PYTHONPATH with the start-up module of such a server."""
    return os.pathsep.join([str(Path(__file__).parent / "startup"), *filter(None, [os.environ.get("PYTHONPATH")])])


def _build_mlflow_command(settings: Settings, port: int) -> list[str]:
    from flywheel_ml.model.registration.store import to_location

    return [
        *("-m", f"{__package__}.die_with_parent", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", settings.tracking_uri, "--default-artifact-root", to_location(settings.artifact_root)),
    ]


def _find_free_port(wanted: int) -> int:
    """Find a free port: the wanted one, or another if it is in use."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
