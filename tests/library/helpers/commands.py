"""Helpers for tests of long-running commands."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel_ml.core import serving_folder


def find_served_bundle(folder: Path, version: str = "1") -> Path:
    """Return the path of a version's bundle in a serving folder."""
    (found,) = (folder / serving_folder.BUNDLES).glob(f"{version}-*")
    return found


def send_request(address: str, body: Any = None) -> Any:
    """Send a request and return the response; a body is posted as JSON."""
    request = urllib.request.Request(address, headers={"Content-Type": "application/json"})
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, content, timeout=30) as answer:
        return answer.read()


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
