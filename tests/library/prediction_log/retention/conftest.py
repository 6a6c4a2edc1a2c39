"""Jobs that are killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

StartAndKill = Callable[[str, str, float], None]


@pytest.fixture
def start_and_kill() -> StartAndKill:
    """Runs a script with an argument in a process of its own, and kills it after some seconds."""

    def call(script: str, argument: str, seconds: float) -> None:
        path = os.pathsep.join([*sys.path, str(Path(__file__).parents[3])])
        process = subprocess.Popen([sys.executable, "-c", script, argument], env={**os.environ, "PYTHONPATH": path})
        time.sleep(seconds)
        process.kill()
        process.wait()

    return call
