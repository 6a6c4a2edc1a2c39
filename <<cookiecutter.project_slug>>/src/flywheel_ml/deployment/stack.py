"""Builds the images, and starts and removes the stack of deploy/compose.yaml."""

import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from dotenv import dotenv_values

from flywheel_ml.core import serving_folder
from flywheel_ml.core.settings import Settings
from flywheel_ml.deployment.docker import Docker, read_environment
from flywheel_ml.deployment.stack_secrets import has_passwords, write_secrets
from flywheel_ml.utils.errors import ConfigError

COMPOSE_FILE = Path("deploy/compose.yaml")
DOCKERFILE = Path("deploy/Dockerfile")
FOLDER = Path("var/stack")
LOG = FOLDER.with_suffix(".log")
PORTS = {
    "SERVE_PORT": 8000,
    "MLFLOW_PORT": 5000,
    "PREFECT_PORT": 4200,
    "PROMETHEUS_PORT": 9090,
    "ALERTMANAGER_PORT": 9093,
}
GRAFANA_PORT = {"GRAFANA_PORT": 3000}
EXTRAS = "--extra postgresql"
"""What the server of the stack needs beyond its dependencies, unless EXTRAS names more."""
MAX_PORT = 65535
WAIT_SECONDS = 1800
RESTARTED = ("sync", "worker", "prometheus", "alertmanager", "grafana")
"""Services that read mounted files when they start: Compose does not see that those changed."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was built.

    Attributes:
        name: name and tag.
        megabytes: its size, base image included.
    """

    name: str
    megabytes: float


def open_docker() -> Docker:
    """Return the Docker of this project, with the variables of .env; it is known to answer.

    Raises:
        ConfigError: Docker is not installed.
        ProjectError: its engine does not answer.
    """
    docker = Docker(read_environment(dotenv_values(".env")), LOG)
    docker.check()
    return docker


def read_name() -> str:
    """Return the name of the project's images, and of its stack unless COMPOSE_PROJECT_NAME is set.

    Raises:
        ConfigError: the compose file does not exist.
    """
    try:
        name: str = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))["name"]
    except FileNotFoundError:
        raise ConfigError(f"{COMPOSE_FILE} does not exist; run this in the project's folder") from None
    return name


def find_stack(docker: Docker, name: str) -> str:
    """Return the name of the stack, as Compose finds it."""
    return docker.environment.get("COMPOSE_PROJECT_NAME") or name


def build_image(docker: Docker, name: str, target: str = "serve", options: str = "") -> Image:
    """Build an image of the project.

    Args:
        docker: where to build.
        name: name of the image.
        target: stage of the Dockerfile, `serve` or `train`.
        options: further options of `docker build`, quoted as for a shell.

    Raises:
        ConfigError: uv.lock does not exist.
        ProjectError: the build failed.
    """
    if not Path("uv.lock").exists():
        raise ConfigError("uv.lock does not exist; run `make install`, and commit it")
    given = ["--file", str(DOCKERFILE), "--target", target, "--tag", name, *shlex.split(options)]
    docker.run("docker", "build", *given, ".")
    size = docker.run("docker", "image", "inspect", "--format", "{{.Size}}", name)
    return Image(name, int(size) / 1e6)


def check_project(settings: Settings) -> None:
    """Check that the project has trained a model.

    Raises:
        ConfigError: it has not.
    """
    if not (settings.serving_folder / serving_folder.ROUTING).is_file():
        raise ConfigError("no model has been trained yet; run `make run`, then `make stack`")


def find_owner(environment: Mapping[str, str], project: Path = Path()) -> tuple[int, int]:
    """Return user and group of the containers: STACK_USER, or those of the project's folder.

    Raises:
        ConfigError: the folder belongs to root, whom no container runs as.
    """
    if given := environment.get("STACK_USER"):
        user, _, group = given.partition(":")
        if not (user.isdecimal() and (group or user).isdecimal()):
            raise ConfigError(f"STACK_USER is '{given}'; give numbers, such as 1000:1000")
        return int(user), int(group or user)
    found = project.stat()
    if found.st_uid == 0:
        raise ConfigError("the project's folder belongs to root; give it to a user: chown -R 1000:1000 .")
    return found.st_uid, found.st_gid


def check_ports(ports: Mapping[str, int], environment: Mapping[str, str]) -> dict[str, int]:
    """Return the ports of the stack; each is free.

    Raises:
        ConfigError: a port is not a number, or is taken.
    """
    chosen = read_ports(ports, environment)
    for name, port in chosen.items():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                raise ConfigError(f"port {port} is not free ({error.strerror}); choose another: {name}=…") from None
    return chosen


def read_ports(ports: Mapping[str, int], environment: Mapping[str, str]) -> dict[str, int]:
    """Return the ports that the variables choose."""
    for name in ports:
        given = environment.get(name, "1")
        if not given.isdecimal() or not 1 <= int(given) <= MAX_PORT:
            raise ConfigError(f"{name} is '{given}'; give the number of a port, from 1 to {MAX_PORT}")
    return {name: int(environment.get(name, port)) for name, port in ports.items()}


def check_folder(docker: Docker, stack: str) -> None:
    """Check that no containers of another folder have the name of this stack.

    Raises:
        ConfigError: they have.
        ProjectError: Docker failed.
    """
    for folder in sorted(docker.list_folders(stack)):
        if folder.resolve() != COMPOSE_FILE.parent.resolve() and exists(folder):
            raise ConfigError(
                f"the stack '{stack}' belongs to {folder.parent}; set COMPOSE_PROJECT_NAME, or run make unstack there"
            )


def exists(folder: Path) -> bool:
    """Return whether a folder exists, or may not be looked into."""
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def check_passwords(docker: Docker, stack: str) -> None:
    """Check that the passwords of a database that exists are known.

    Raises:
        ConfigError: they are not.
        ProjectError: Docker failed.
    """
    if not has_passwords(FOLDER) and docker.has_volume(f"{stack}_postgres"):
        raise ConfigError(
            f"the data of an earlier stack '{stack}' need its secrets; "
            f"restore {FOLDER}, or remove the data with `make unstack VOLUMES=1`"
        )


def start(docker: Docker, settings: Settings, options: str, profile: str) -> dict[str, int]:
    """Build the images and start the stack, or bring a running one up to date; returns its ports.

    Args:
        docker: where to run it.
        settings: the project's settings.
        options: further options of `docker build`.
        profile: a profile of the compose file, such as `grafana`.

    Raises:
        ConfigError: no model has been trained, a port is taken, the folder belongs to root, the engine is
            rootless, Compose is too old, or the name of the stack is another's.
        ProjectError: Docker failed.
    """
    check_project(settings)
    name = read_name()
    owner = find_owner(docker.environment)
    docker.environment["STACK_USER"] = f"{owner[0]}:{owner[1]}"
    compose = [*docker.find_compose(), "--file", str(COMPOSE_FILE), *(["--profile", profile] if profile else [])]
    docker.check_rootful()
    stack = find_stack(docker, name)
    check_folder(docker, stack)
    check_passwords(docker, stack)
    ports = {**PORTS, **(GRAFANA_PORT if profile else {})}
    # A line of several words is a warning.
    running = re.findall(r"^[\w.-]+$", docker.run(*compose, "ps", "--services"), re.MULTILINE)
    chosen = read_ports(ports, docker.environment) if running else check_ports(ports, docker.environment)
    write_secrets(FOLDER, owner)
    extras = docker.environment.get("EXTRAS", EXTRAS)
    build_image(docker, name, options=f"--build-arg EXTRAS='{extras}' {options}")
    build_image(docker, f"{name}-train", "train", options)
    docker.run(*compose, "up", "--detach", "--no-build", "--wait", "--wait-timeout", str(WAIT_SECONDS))
    if old := [service for service in RESTARTED if service in running]:
        docker.run(*compose, "restart", *old)
    return chosen


def remove(docker: Docker, volumes: bool) -> None:
    """Remove the containers and networks of the stack.

    Args:
        docker: where it runs.
        volumes: remove its data too.

    Raises:
        ConfigError: the containers of that name belong to another folder.
        ProjectError: Docker failed.
    """
    docker.environment.setdefault("STACK_USER", "1000:1000")
    compose = [*docker.find_compose(), "--file", str(COMPOSE_FILE), "--profile", "*"]
    check_folder(docker, find_stack(docker, read_name()))
    docker.run(*compose, "down", "--remove-orphans", *(["--volumes"] if volumes else []))
