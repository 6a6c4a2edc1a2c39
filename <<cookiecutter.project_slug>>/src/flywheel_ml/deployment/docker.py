"""Calls Docker and Compose; a failure becomes one line with its remedy."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from flywheel_ml.utils.errors import ConfigError, ProjectError

NO_DOCKER = "Docker is not installed; install Docker Engine 23 or newer with Compose (https://docs.docker.com/engine/)"
NO_COMPOSE = "Docker Compose is not installed; install the package docker-compose-plugin"
OLD_COMPOSE = "Docker Compose 2.24 or newer is needed, and {0} is installed; install docker-compose-plugin"
MIN_COMPOSE = (2, 24)
ROOTLESS = (
    "the stack needs a Docker engine that runs as root, and this one is rootless; `docker context ls` lists others"
)

FAULTS = (
    (r"no space left on device", "the Docker engine's disk is full; free it with `docker system prune`, then repeat"),
    (
        r"(BuildKit is enabled but the buildx|requires BuildKit|unknown flag: --secret|--mount option requires)",
        "this Docker builds without BuildKit; install Docker 23 or newer, or the package docker-buildx-plugin",
    ),
    (
        r"permission denied while trying to connect|permission denied.*docker\.sock",
        "this user may not use the Docker engine; add it to the group `docker`, and log in again",
    ),
    (
        r"Cannot connect to the Docker daemon|error during connect|docker daemon is not running",
        "the Docker engine does not answer; start it, for example with `sudo systemctl start docker`",
    ),
    (
        r"(?:bind|listen)[^\n]*?:(\d+)[^\n]*(?:address already in use|port is already allocated)"
        r"|(?:Bind for|exposing port)[^\n]*?:(\d+)[^\n]*(?:already allocated|already in use)",
        "port {0} is in use; end what listens there, or choose another, see docs/stack.md",
    ),
    (
        r"failed to start: container (\S+)|service \"(\S+)\" didn't complete successfully",
        "the container {0} does not start; `docker logs` has the reason (`docker ps --all` lists the names)",
    ),
    (
        r"lockfile at `uv\.lock` needs to be updated|Unable to find lockfile",
        "uv.lock does not fit pyproject.toml; run `make install`, and commit uv.lock",
    ),
    (
        r"invalid peer certificate|certificate signed by unknown authority|CERTIFICATE_VERIFY_FAILED",
        "a certificate is not trusted; pass your company's: ARGS='--secret id=ca,src=company-ca.pem'",
    ),
    (
        r"Temporary failure resolving|Unable to locate package",
        "the packages of Debian cannot be had; name a mirror that this machine reaches: "
        "ARGS='--build-arg DEBIAN_MIRROR=…'",
    ),
    (
        r"(?:pull access denied|failed to resolve|failed to do request|dial tcp|manifest unknown)[^\n]*",
        "a base image cannot be pulled; name a registry that this machine reaches: "
        "ARGS='--build-arg PYTHON_REGISTRY=… --build-arg UV_REGISTRY=…'",
    ),
)
"""Pattern in the output of Docker → what it means and the remedy; the first that matches counts."""


class DockerFailure(ProjectError):
    """A command of Docker failed."""


class Docker:
    """The Docker command, and Compose.

    Args:
        environment: variables of the commands.
        log: file that receives what the commands print.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = {**environment, "DOCKER_BUILDKIT": "1"}
        self._log = log

    def check(self) -> None:
        """Check that an engine answers.

        Raises:
            ConfigError: Docker is not installed.
            DockerFailure: the engine does not answer.
        """
        if shutil.which("docker", path=self.environment.get("PATH")) is None:
            raise ConfigError(NO_DOCKER)
        self.run("docker", "version", "--format", "{{.Server.Version}}")

    def check_rootful(self) -> None:
        """Check that the engine may run containers as any user of this machine.

        Raises:
            ConfigError: it is rootless.
            DockerFailure: the engine does not answer.
        """
        if "name=rootless" in self.run("docker", "info", "--format", "{{.SecurityOptions}}"):
            raise ConfigError(ROOTLESS)

    def find_compose(self) -> tuple[str, ...]:
        """Return the command of Compose.

        Raises:
            ConfigError: Compose is not installed, or is too old.
        """
        old = []
        for command in (("docker", "compose"), ("docker-compose",)):
            if (version := self._read_version(command)) is None:
                continue
            numbers = re.search(r"(\d+)\.(\d+)", version)
            if numbers is None or tuple(map(int, numbers.groups())) >= MIN_COMPOSE:
                return command
            old.append(version)
        raise ConfigError(OLD_COMPOSE.format(old[0]) if old else NO_COMPOSE)

    def _read_version(self, compose: Sequence[str]) -> str | None:
        if shutil.which(compose[0], path=self.environment.get("PATH")) is None:
            return None
        command = [*compose, "version", "--short"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    def list_folders(self, stack: str) -> set[Path]:
        """Return the folders of the compose files that the containers of a stack were made from."""
        label = "com.docker.compose.project"
        given = ["--all", "--filter", f"label={label}={stack}", "--format", f'{{{{.Label "{label}.working_dir"}}}}']
        return {Path(line) for line in self.run("docker", "ps", *given).splitlines() if line.strip()}

    def has_volume(self, name: str) -> bool:
        """Return whether the engine holds a volume."""
        return name in self.run("docker", "volume", "ls", "--quiet").split()

    def run(self, *command: str) -> str:
        """Run a command to its end; returns what it printed.

        Raises:
            DockerFailure: it failed.
        """
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
        if done.returncode:
            raise DockerFailure(self._describe(command, done.stdout))
        return done.stdout

    def _describe(self, command: Sequence[str], output: str) -> str:
        for pattern, meaning in FAULTS:
            if found := re.search(pattern, output, re.IGNORECASE):
                return meaning.format(*filter(None, found.groups()))
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "it printed nothing")
        return f"`{' '.join(command[:2])}` failed: {last.strip()[:300]} (see {self._log})"


def read_environment(env_file: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables of a command: those of .env, and before them those of the environment."""
    return {**{name: value for name, value in env_file.items() if value}, **os.environ}
