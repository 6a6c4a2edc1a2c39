"""A Prefect API server that ends when its standard input closes, that is with the process that started it."""

import os
import sys
import threading


def main() -> None:
    """Arguments: the port on 127.0.0.1, and 1 to leave out the scheduler and the pages, 0 to have them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=sys.argv[2] == "1")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="on")


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    # Not sys.exit: nothing may keep an orphan alive.
    os._exit(0)


if __name__ == "__main__":
    main()
