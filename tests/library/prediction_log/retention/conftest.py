"""Jobs in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RunScript = Callable[[str, str], str]
StartAndKill = Callable[[str, str, float], None]


@pytest.fixture
def run_script() -> RunScript:
    """Runs a script with an argument in a process of its own; returns what it printed."""

    def call(script: str, argument: str) -> str:
        done = subprocess.run(
            _command(script, argument), env=_environment(), capture_output=True, text=True, check=True
        )
        return done.stdout

    return call


@pytest.fixture
def start_and_kill() -> StartAndKill:
    """Runs a script with an argument in a process of its own, and kills it after some seconds."""

    def call(script: str, argument: str, seconds: float) -> None:
        process = subprocess.Popen(_command(script, argument), env=_environment())
        time.sleep(seconds)
        process.kill()
        process.wait()

    return call


def _command(script: str, argument: str) -> list[str]:
    return [sys.executable, "-c", script, argument]


def _environment() -> dict[str, str]:
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[3])])
    return {**os.environ, "PYTHONPATH": path}
