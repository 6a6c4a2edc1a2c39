"""The health check of a container asks the server where it listens, and whether it can predict."""

import subprocess
import sys

import pytest

from flywheel_ml.serving.process import health


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("flights serve --host 0.0.0.0 --port 8000", ("127.0.0.1", 8000)),
        ("docker-init -- flights serve --port=9000 --host=::", ("127.0.0.1", 9000)),
        ("flights serve --host 10.0.0.7 --port 1 --port 8080", ("10.0.0.7", 8080)),
        ("flights serve", ("127.0.0.1", 8000)),
    ],
)
def test_address_is_read_from_the_command(command: str, address: tuple[str, int]) -> None:
    assert health.parse_address(command.split()) == address


def test_nothing_that_listens_is_not_ready() -> None:
    assert not health.is_ready("127.0.0.1", 1)


def test_health_imports_no_library() -> None:
    """It starts every few seconds: numpy or FastAPI would cost a core."""
    code = (
        "import sys, flywheel_ml.serving.process.health;"
        "print(sorted(set(sys.modules) & {'numpy', 'fastapi', 'pydantic', 'uvicorn', 'typer'}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
