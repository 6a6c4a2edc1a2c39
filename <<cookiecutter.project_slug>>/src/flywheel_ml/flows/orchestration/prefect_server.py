"""A Prefect API server that stops when the process that started it dies."""

import socket
import sys

from flywheel_ml.flows.orchestration import die_with_parent


def main() -> None:
    """Run the server. Arguments: file descriptor of the open socket; 1 for a whole server, 0 for flows only."""
    die_with_parent.watch_parent()

    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(ephemeral=sys.argv[2] == "0"), log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
