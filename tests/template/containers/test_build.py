"""What a build may be given, and how it fails: one line with the remedy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from containers.conftest import PACKAGE, build
from containers.engine import Engine, start_engine

pytestmark = pytest.mark.slow


def call(project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project by this Python, which has its libraries."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), **variables}
    command = [sys.executable, "-m", PACKAGE, *words]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def test_absent_docker_is_one_line(project: Path, tmp_path: Path) -> None:
    done = call(project, "image", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: Docker is not installed; install Docker Engine 23")
    assert done.stderr.count("\n") == 1


def test_stack_before_the_first_run_is_one_line(project: Path) -> None:
    done = call(project, "stack")
    assert done.returncode == 2
    expected = "error: no model has been trained yet; run `make run`, then `make stack`\n"
    assert done.stderr == expected


def test_silent_engine_is_one_line(engine: Engine, project: Path, tmp_path: Path) -> None:
    variables = {**engine.environment, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    done = call(project, "image", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the Docker engine does not answer; start it")
    assert done.stderr.count("\n") == 1


def test_registries_are_arguments(engine: Engine, project: Path) -> None:
    """The build asks the registry that it is given; one that does not answer is named."""
    options = "--network host --build-arg PYTHON_REGISTRY=127.0.0.1:1/mirror"
    done = call(project, "image", "--build-options", options, **engine.environment)
    assert done.returncode == 1
    assert "a base image cannot be pulled; name a registry that this machine reaches" in done.stderr
    assert "127.0.0.1:1/mirror" in (project / "var" / "stack.log").read_text()


@pytest.mark.full
def test_full_disk_is_one_line(engine: Engine, project: Path, tmp_path: Path) -> None:
    """The build of 80 MB in an engine whose disk has 60."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    changed = tmp_path / "changed"
    shutil.copytree(project, changed)
    (changed / "deploy" / "Dockerfile").write_text("FROM scratch AS serve\nCOPY src /src\n")
    (changed / "src" / "large").write_bytes(os.urandom(80_000_000))
    with small_disk(tmp_path / "disk", "60m") as home, start_engine(home) as small:
        done = call(changed, "image", **small.environment)
    assert done.returncode == 1
    assert done.stderr == (
        "error: the Docker engine's disk is full; free it with `docker system prune`, then repeat\n"
    )


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


@pytest.mark.full
def test_libraries_come_from_the_index_that_is_given(
    engine: Engine, project: Path, base: bool
) -> None:
    """With the hashes of uv.lock, made with another index; this one names no upload times."""
    lock = (project / "uv.lock").read_text()
    found = re.search(r'registry = "(https[^"]+)"', lock)
    assert found
    with index_without_times(found[1]) as (address, asked):
        build(
            engine, project, "flight-delays:index", "--no-cache", "--build-arg", f"INDEX={address}"
        )
    assert {"fastapi", "onnxruntime", "hatchling"} <= asked


@contextmanager
def index_without_times(upstream: str) -> Iterator[tuple[str, set[str]]]:
    """Serve the HTML pages of an index; yields its address and the packages asked for."""
    asked: set[str] = set()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            asked.add(name)
            page = f"{upstream.rstrip('/')}/{name}/"
            answer = httpx.get(
                page, headers={"Accept": "text/html"}, follow_redirects=True, timeout=60
            )
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<base href="{page}">'.encode() + answer.content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
