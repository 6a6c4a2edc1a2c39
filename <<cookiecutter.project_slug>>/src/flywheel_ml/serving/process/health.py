"""Health check of a container: exit status 0 if its server can predict.

Asks `/readyz` at the address of the container's first process, without a proxy. It imports only the standard library,
because the engine starts it every few seconds.
"""

import re
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path

COMMAND = Path("/proc/1/cmdline")
TIMEOUT_SECONDS = 2.0
ANY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104 (recognised, not listened on)


def parse_address(arguments: list[str]) -> tuple[str, int]:
    """Return the host and port at which `serve` with these arguments is reached from its own machine."""
    text = "\0".join(arguments)
    host = re.findall(r"(?:^|\0)--host[=\0]([^\0]*)", text)[-1:]
    port = re.findall(r"(?:^|\0)--port[=\0](\d+)", text)[-1:]
    return host[0] if host and host[0] not in ANY_ADDRESS else "127.0.0.1", int(port[0]) if port else 8000


def is_ready(host: str, port: int) -> bool:
    """Whether the server at an address answers `/readyz` with 200."""
    connection = HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_ready(*parse_address(COMMAND.read_bytes().decode(errors="replace").split("\0"))))
