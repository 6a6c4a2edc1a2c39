"""What the tests of long-running commands share."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel_ml.core import serving_folder


def find_served_bundle(folder: Path, version: str = "1") -> Path:
    """Where a serving folder has the bundle of a version."""
    (found,) = (folder / serving_folder.BUNDLES).glob(f"{version}-*")
    return found


def send_request(address: str, body: Any = None) -> Any:
    """What an address answers; a body is posted as JSON."""
    request = urllib.request.Request(address, headers={"Content-Type": "application/json"})
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, content, timeout=30) as answer:
        return answer.read()


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
