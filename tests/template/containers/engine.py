"""A Docker engine for the tests: the one that answers, or one that is started and ended."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_S = 30.0
COMMAND_S = 900.0
IMAGE_BYTES, STACK_BYTES = 4_000_000_000, 10_000_000_000
"""Room for base images, images and build cache, without those of the stack and with them."""


class NoEngineError(Exception):
    """No engine answers and none can be started; the message is the reason."""


class Engine:
    """A Docker engine and its command.

    Args:
        address: value of DOCKER_HOST; empty for the engine that answers by default.
    """

    def __init__(self, address: str = "") -> None:
        self.program = find_client()
        given = {"DOCKER_HOST": address} if address else {}
        path = f"{Path(self.program).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "1", "PATH": path, **given}

    def call(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `docker`; what it prints is kept, and its exit status is the caller's to judge."""
        return subprocess.run(
            [self.program, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
            **options,
        )

    def run(self, *arguments: str, **options: Any) -> str:
        """Run `docker`, which must succeed; returns what it prints."""
        done = self.call(*arguments, **options)
        shown = " ".join(arguments[:4])
        assert done.returncode == 0, f"docker {shown}: {(done.stdout + done.stderr)[-4000:]}"
        return done.stdout.strip()

    def inspect(self, *names: str) -> Any:
        """Return what the engine knows of a container, image or volume."""
        return json.loads(self.run("inspect", *names))[0]

    def answers(self) -> bool:
        """Whether the engine answers."""
        return self.call("version", "--format", "{{.Server.Version}}").returncode == 0

    def has_image(self, name: str) -> bool:
        """Whether the engine holds an image."""
        return self.call("image", "inspect", name).returncode == 0


def find_client() -> str:
    """Return the `docker` command, first a distribution's own, which has BuildKit built in."""
    if Path("/usr/bin/docker").exists():
        return "/usr/bin/docker"
    found = shutil.which("docker")
    if found is None:
        raise NoEngineError("the command `docker` is not installed")
    return found


@contextmanager
def use_engine(needed_bytes: int) -> Iterator[Engine]:
    """Use the engine that answers; otherwise start one, and end it with everything it made.

    Args:
        needed_bytes: room for the data of an engine that is started.

    Raises:
        NoEngineError: there is none, and none can be started here.
    """
    engine = Engine()
    if engine.answers():
        yield engine
        return
    home = Path(tempfile.mkdtemp(prefix="engine-", dir=find_scratch(needed_bytes)))
    try:
        with start_engine(home) as own:
            yield own
    finally:
        # Many small files: several times faster than from Python.
        subprocess.run(["rm", "--recursive", "--force", str(home)], check=False)


def find_scratch(needed_bytes: int) -> Path | None:
    """Return the folder of shared memory if it has room: a busy disk deletes layers slowly."""
    memory = Path("/dev/shm")  # noqa: S108
    if not memory.is_dir() or shutil.disk_usage(memory).free < needed_bytes:
        return None
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    enough = available is not None and int(available[1]) * 1024 > 1.5 * needed_bytes
    return memory if enough else None


@contextmanager
def start_engine(home: Path) -> Iterator[Engine]:
    """Start an engine of its own in a folder.

    It touches no rule of the machine's firewall: its proxy publishes ports, containers join
    networks that a test makes, and builds use the machine's network.
    """
    program = shutil.which("dockerd")
    if program is None:
        raise NoEngineError("no Docker engine answers and `dockerd` is not installed")
    if os.geteuid() != 0:
        raise NoEngineError("no Docker engine answers and only root can start one")
    engine = Engine(f"unix://{home}/docker.sock")
    pool = f"base=10.{64 + secrets.randbelow(128)}.0.0/16,size=24"
    options = ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    places = ["--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "-p", f"{home}/pid"]
    command = [program, *places, "-H", f"unix://{home}/docker.sock", *options]
    with (home / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [*command, "--default-address-pool", pool], stdout=log, stderr=log
        )
    try:
        wait_until_up(engine, daemon, home)
        yield engine
        remove_everything(engine)
    finally:
        end(daemon)
        unmount_below(home)


def wait_until_up(engine: Engine, daemon: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and daemon.poll() is None:
        if engine.answers():
            return
        time.sleep(0.2)
    said = (home / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise NoEngineError(f"dockerd does not start here: {' '.join(said)[-300:]}")


def remove_everything(engine: Engine) -> None:
    """Remove the containers and networks of an engine, with their processes and interfaces."""
    if containers := engine.run("ps", "--all", "--quiet").split():
        engine.call("rm", "--force", "--volumes", *containers)
    engine.call("network", "prune", "--force")


def end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(timeout=20)
        return
    daemon.kill()
    daemon.wait(timeout=10)


def unmount_below(home: Path) -> None:
    """Unmount what an engine leaves below its folder, such as the namespaces of its networks."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for place in sorted((line.split()[1] for line in mounts), reverse=True):
        if place.startswith(f"{home}/"):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
