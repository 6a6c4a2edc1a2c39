"""A Prefect API server that ends with the process that started it."""

import socket
import sys
from typing import Any

from . import leash

MODES: dict[str, dict[str, Any]] = {
    "api": {"ephemeral": True},
    "pages": {"webserver_only": True},
    "schedules": {},
}
"""What a server does: answer flows only, show pages too, or also start what is scheduled."""


def main() -> None:
    """Arguments: the number of the open socket to listen on, and the mode."""
    leash.hold()

    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(**MODES[sys.argv[2]]), log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
