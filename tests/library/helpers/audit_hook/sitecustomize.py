"""Loaded by every Python process that a test starts with this folder on PYTHONPATH: it watches, and kills on demand.

AUDIT_LOG names a file that gets a line for every address that a process connects to or looks up.
AUDIT_KILL is `event:pattern`: the process kills itself, as by kill -9, when an audit event's arguments match.
"""

import os
import re
import signal
import sys
from typing import Any

LOG = os.environ.get("AUDIT_LOG")
EVENT, _, PATTERN = os.environ.get("AUDIT_KILL", "").partition(":")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == EVENT and re.search(PATTERN, " ".join(map(str, arguments))):
        os.kill(os.getpid(), signal.SIGKILL)
    if LOG and event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        place = address[0] if isinstance(address, tuple) else address
        file = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{place}\n".encode())
        os.close(file)


if LOG or EVENT:
    sys.addaudithook(watch)
