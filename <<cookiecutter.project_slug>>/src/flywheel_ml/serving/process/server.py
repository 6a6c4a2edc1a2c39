"""Starts servers: one in this process, or several that share an address."""

import os
from collections.abc import Callable

from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.auth.api_keys import load_keys
from flywheel_ml.serving.observability import multiprocess
from flywheel_ml.serving.observability.logs import unify_logging
from flywheel_ml.serving.observability.tracing import is_configured
from flywheel_ml.serving.process.reload_signal import ReloadSignal
from flywheel_ml.serving.process.sockets import announce, listen

# `worker` is imported where it is used: a supervisor, or a start that is refused, needs none of its libraries.


def run(project: Project, read_settings: Callable[[], Settings], host: str, port: int, workers: int) -> None:
    """Serve until SIGTERM or SIGINT; prints one line with the address once requests are answered.

    Args:
        project: whose features the models need.
        read_settings: returns where things are, limits and keys; called again for each reload.
        host: name or address to listen on.
        port: 0 for a free one.
        workers: processes; each loads the model and writes a log file of its own.

    Raises:
        ConfigError: a setting that cannot be used, production mode without an API key, a prediction log that cannot be
            opened, or traces that cannot be sent as the environment asks.
        ServingError: the address is taken, or a worker cannot start.
    """
    settings = read_settings()
    load_keys(settings)
    is_configured(os.environ)
    unify_logging()
    reloads = ReloadSignal()
    with listen(host, port, several=workers > 1) as listener:
        if workers == 1:
            from flywheel_ml.serving.process.worker import serve

            serve(project, settings, listener, lambda _: announce(listener), reloads=reloads)
        else:
            from flywheel_ml.serving.process.spawning import WorkerConfig
            from flywheel_ml.serving.process.supervisor import Supervisor

            with multiprocess.create_folder() as counts:
                config = WorkerConfig(project.reference, settings, listener, workers, counts)
                Supervisor(config, read_settings, reloads).run()
