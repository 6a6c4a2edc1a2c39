"""Whatever keeps the stack from starting is one line with its remedy; secrets are private and stay."""

import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.deployment import stack
from flywheel_ml.deployment.docker import Docker
from flywheel_ml.deployment.stack_secrets import write_secrets
from flywheel_ml.utils.errors import ConfigError, ProjectError

OWNER = (os.getuid(), os.getgid())
REPORTS = [
    ("failed to copy: write /var/lib/docker/x: no space left on device", "disk is full; free it with `docker system"),
    ("ERROR: BuildKit is enabled but the buildx component is missing or broken.", "builds without BuildKit; install"),
    ("the --mount option requires BuildKit. Refer to https://docs.docker.com", "builds without BuildKit; install"),
    ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "does not answer; start it"),
    ("permission denied while trying to connect to the Docker daemon socket", "add it to the group `docker`"),
    ("Bind for 127.0.0.1:5000 failed: port is already allocated", "port 5000 is in use; end what listens there"),
    ("listen tcp4 127.0.0.1:9090: bind: address already in use", "port 9090 is in use; end what listens there"),
    (
        "error: The lockfile at `uv.lock` needs to be updated, but `--locked` was",
        "run `make install`, and commit uv.lock",
    ),
    ("invalid peer certificate: UnknownIssuer", "pass your company's: ARGS='--secret id=ca,src=company-ca.pem'"),
    (
        "failed to do request: Head https://registry: dial tcp: no such host",
        "name a registry that this machine reaches",
    ),
    (
        "Err:1 http://deb.debian.org/debian bookworm InRelease\n  Temporary failure resolving 'deb.debian.org'",
        "name a mirror that this machine reaches: ARGS='--build-arg DEBIAN_MIRROR=…'",
    ),
    ("E: Unable to locate package git", "name a mirror that this machine reaches"),
    ("step 1\nsomething else broke", "`docker build` failed: something else broke (see "),
]
"""What Docker prints → what a user reads."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a project's after `make run`, and the current folder."""
    for path in (tmp_path / "deploy/compose.yaml", tmp_path / "var/serving/routing.json", tmp_path / "uv.lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("name: flights\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_docker(tmp_path: Path) -> Callable[[str, int], Docker]:
    """Return a Docker whose command prints a text and ends with a status."""

    def make(text: str = "", status: int = 0) -> Docker:
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{sys.executable}\nprint({text!r})\nraise SystemExit({status})\n")
        program.chmod(0o755)
        return Docker({"PATH": str(program.parent)}, tmp_path / "stack.log")

    return make


class StandIn:
    """A Docker whose commands print the text of the first pattern that they contain, and are listed.

    Args:
        folder: where its commands are.
        answers: words of a command → what it prints.
    """

    def __init__(self, folder: Path, answers: dict[str, str]) -> None:
        given = {"version --short": "2.29.1", "image inspect": "1000", **answers}
        self._calls = folder / "calls"
        program = folder / "bin" / "docker"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\n"
            "import pathlib, sys\n"
            f"command, path = ' '.join(sys.argv[1:]), pathlib.Path({str(self._calls)!r})\n"
            "path.open('a').write(command + '\\n')\n"
            f"print(next((text for words, text in {given!r}.items() if words in command), ''))\n"
        )
        program.chmod(0o755)
        environment = {"PATH": str(program.parent), "STACK_USER": "{}:{}".format(*OWNER)}
        self.docker = Docker({**environment, **{name: str(free_port()) for name in stack.PORTS}}, folder / "log")

    def list_calls(self) -> list[str]:
        """Return the commands that were run."""
        return self._calls.read_text().splitlines()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def start_stack(project: Path) -> Callable[[dict[str, str]], list[str]]:
    """Return a function that starts the stack with a stand-in for Docker, and returns the commands."""

    def start(answers: dict[str, str]) -> list[str]:
        stand_in = StandIn(project, answers)
        stack.start(stand_in.docker, Settings.read(), "", "")
        return stand_in.list_calls()

    return start


@pytest.mark.parametrize(("printed", "line"), REPORTS, ids=[line.split(";")[0][:30] for _, line in REPORTS])
def test_failure_of_docker_is_one_line(
    make_docker: Callable[[str, int], Docker], tmp_path: Path, printed: str, line: str
) -> None:
    with pytest.raises(ProjectError) as caught:
        make_docker(printed, 1).run("docker", "build", ".")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert printed in (tmp_path / "stack.log").read_text()


def test_missing_docker_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Docker is not installed; install Docker Engine"):
        Docker({"PATH": str(tmp_path)}, tmp_path / "log").check()


def test_engine_that_does_not_answer_is_named(make_docker: Callable[[str, int], Docker]) -> None:
    with pytest.raises(ProjectError, match="the Docker engine does not answer; start it"):
        make_docker("Cannot connect to the Docker daemon at unix:///x.sock", 1).check()


def test_missing_compose_is_named(make_docker: Callable[[str, int], Docker]) -> None:
    with pytest.raises(ConfigError, match="Docker Compose is not installed; install the package"):
        make_docker("docker: 'compose' is not a docker command.", 1).find_compose()


@pytest.mark.parametrize("version", ["1.29.2", "2.23.3", "v2.3.4"])
def test_old_compose_is_refused(make_docker: Callable[[str, int], Docker], version: str) -> None:
    with pytest.raises(ConfigError, match=rf"Compose 2\.24 or newer is needed, and {version} is installed; install"):
        make_docker(version, 0).find_compose()


@pytest.mark.parametrize("version", ["2.24.0", "v2.40.3", "2.26.1-4", "5.6.1", "dev"])
def test_new_compose_is_found(make_docker: Callable[[str, int], Docker], version: str) -> None:
    assert make_docker(version, 0).find_compose() == ("docker", "compose")


def test_rootless_engine_is_refused(start_stack: Callable[[dict[str, str]], list[str]]) -> None:
    with pytest.raises(ConfigError, match="needs a Docker engine that runs as root, and this one is rootless"):
        start_stack({"info": "[name=seccomp,profile=builtin name=rootless name=cgroupns]"})


def test_repeated_start_restarts_what_reads_mounted_files(
    start_stack: Callable[[dict[str, str]], list[str]],
) -> None:
    running = "mlflow\nserve\nsync\nworker\nprometheus\nalertmanager\n"
    *_, up, restart = start_stack({"ps --services": running})
    assert " up --detach" in up
    assert restart.endswith("restart sync worker prometheus alertmanager")


@pytest.mark.parametrize("printed", ["", 'level=warning msg="the worker is old"'])
def test_first_start_restarts_nothing(start_stack: Callable[[dict[str, str]], list[str]], printed: str) -> None:
    assert " up --detach" in start_stack({"ps --services": printed})[-1]


def test_stack_of_another_folder_is_refused(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "deploy").mkdir(parents=True)
    stand_in = StandIn(project, {"ps --all --filter label=com.docker.compose.project=flights": f"{other}/deploy"})
    line = f"the stack 'flights' belongs to {other}; set COMPOSE_PROJECT_NAME, or run make unstack there"
    with pytest.raises(ConfigError) as caught:
        stack.start(stand_in.docker, Settings.read(), "", "")
    assert str(caught.value) == line
    with pytest.raises(ConfigError) as caught:
        stack.remove(stand_in.docker, volumes=True)
    assert str(caught.value) == line
    assert not any(word in call for call in stand_in.list_calls() for word in (" up ", " down ", "build"))
    stand_in.docker.environment["COMPOSE_PROJECT_NAME"] = "second"
    stack.start(stand_in.docker, Settings.read(), "", "")


@pytest.mark.parametrize("folder", ["deploy", "moved/deploy"])
def test_stack_of_this_folder_or_of_none_starts(
    project: Path, start_stack: Callable[[dict[str, str]], list[str]], folder: str
) -> None:
    start_stack({"ps --all": str(project / folder)})


def test_data_without_their_secrets_are_refused(
    project: Path, start_stack: Callable[[dict[str, str]], list[str]]
) -> None:
    answers = {"volume ls": "other_postgres\nflights_postgres\n"}
    with pytest.raises(ConfigError, match="the data of an earlier stack 'flights' need its secrets; restore var/stack"):
        start_stack(answers)
    assert not (project / "var/stack").exists()
    stand_in = StandIn(project, answers)
    stack.remove(stand_in.docker, volumes=True)
    assert stand_in.list_calls()[-1].endswith("down --remove-orphans --volumes")
    write_secrets(project / "var/stack", OWNER)
    start_stack(answers)


def test_stack_before_the_first_run_is_refused(project: Path) -> None:
    (project / "var/serving/routing.json").unlink()
    with pytest.raises(ConfigError, match="no model has been trained yet; run `make run`, then `make stack`"):
        stack.check_project(Settings.read())


def test_image_without_a_lock_is_refused(project: Path, make_docker: Callable[[str, int], Docker]) -> None:
    (project / "uv.lock").unlink()
    with pytest.raises(ConfigError, match=r"uv\.lock does not exist; run `make install`, and commit it"):
        stack.build_image(make_docker("", 0), "flights")


def test_taken_port_is_named_with_its_variable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is not free .*; choose another: SERVE_PORT="):
            stack.check_ports(stack.PORTS, {"SERVE_PORT": str(port)})


def test_port_that_is_no_number_is_named() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_PORT is 'x'; give the number of a port"):
        stack.read_ports(stack.PORTS, {"MLFLOW_PORT": "x"})


@pytest.mark.parametrize("port", ["0", "80000"])
def test_port_out_of_range_is_named(port: str) -> None:
    with pytest.raises(ConfigError, match=f"SERVE_PORT is '{port}'; give the number of a port, from 1 to 65535"):
        stack.check_ports(stack.PORTS, {"SERVE_PORT": port})


def test_containers_run_as_the_owner_of_the_folder(tmp_path: Path) -> None:
    assert stack.find_owner({"STACK_USER": "1001:1002"}) == (1001, 1002)
    assert stack.find_owner({"STACK_USER": "1001"}) == (1001, 1001)
    with pytest.raises(ConfigError, match="STACK_USER is 'ada'; give numbers, such as 1000:1000"):
        stack.find_owner({"STACK_USER": "ada"})
    if os.getuid() == 0:
        with pytest.raises(ConfigError, match="the project's folder belongs to root; give it to a user"):
            stack.find_owner({}, tmp_path)
    else:
        assert stack.find_owner({}, tmp_path) == OWNER


def test_secrets_are_private_and_fit_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    assert write_secrets(folder, OWNER)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert sha256(found["api_key"].encode()).hexdigest() in found["api_keys"]
    assert found["s3_key"] in found["s3_credentials"]
    assert json.loads(found["s3_config"])["identities"][0]["credentials"][0]["secretKey"] == found["s3_key"]
    assert len({text.rpartition(":")[2] for name, text in found.items() if name.startswith("pgpass_")}) == 3


def test_secrets_that_exist_are_kept(tmp_path: Path) -> None:
    write_secrets(tmp_path, OWNER)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert not write_secrets(tmp_path, OWNER)
    (tmp_path / "api_keys").unlink()  # as after a kill in between
    assert write_secrets(tmp_path, OWNER)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
