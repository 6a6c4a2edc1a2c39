"""Both consoles, shown for one small project by the command itself."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .. import project


class Pages(NamedTuple):
    """A running `ui`: its project, its process, its lines and the addresses that they name."""

    path: Path
    process: subprocess.Popen[str]
    lines: list[str]
    mlflow: str
    prefect: str


@pytest.fixture(scope="module")
def pages(turned: project.Turned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    path = project.copy(turned.path, tmp_path_factory.mktemp("pages") / "project", history=True)
    with project.start(path, "-m", f"{project.PACKAGE}.cli", "ui", stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        addresses = re.findall(r"http://127\.0\.0\.1:\d+", "".join(lines))
        yield Pages(path, process, lines, *addresses)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
