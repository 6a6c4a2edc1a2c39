"""A registry on another machine: a real MLflow server, reached by its address alone, with the artifacts behind it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout
from flywheel_ml.model.registration.registry import CHAMPION, Registry
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import sha256_file
from library.helpers import project, store

pytestmark = pytest.mark.chaos


class Remote:
    """An MLflow server that can go away and come back; `folder` is its own, not its clients'."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """The server, from its first answer to its end."""
        words = ("server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1")
        keeps = ("--backend-store-uri", "sqlite:///store.db", "--artifacts-destination", str(self.folder / "artifacts"))
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words, *keeps],
                cwd=self.folder,
                env=project.environment(self.folder, **quiet),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            until(lambda: process.poll() is not None or self._answers(), 90)
            assert process.poll() is None, (self.folder / "server.log").read_text()
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def settings(folder: Path, remote: Remote) -> Settings:
    return Settings(tracking_uri=remote.url, serving_folder=folder / "var" / "serving")


def serves(folder: Path) -> str | None:
    """The version in a serving folder, its bundle being whole."""
    if not (folder / serving_folder.ROUTING).exists():
        return None
    now = serving_folder.read_routing(folder)
    assert now.champion is not None
    bundle.verify(serving_folder.bundle_folder(folder, now.champion), now.champion.digest)
    return now.champion.version


def test_sidecar_follows_remote_registry_and_rejects_tampering(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, server = tmp_path / "trainer", tmp_path / "server"
    trainer.mkdir()
    server.mkdir()
    (tmp_path / "remote").mkdir()
    remote = Remote(tmp_path / "remote")
    monkeypatch.chdir(trainer)
    contract = yaml.safe_load((project.ROOT / "contract.yaml").read_text())
    (server / "contract.yaml").write_text(yaml.safe_dump({**contract, "name": store.NAME}))
    lines: list[str] = []

    with ExitStack() as later:
        with remote.running():
            own = settings(trainer, remote)
            registry = Registry.open(own, store.NAME)
            for name in ("first", "second", "third"):
                registry.register(
                    store.copy_with_new_card(bundle_path, tmp_path / name), store.PASSED_CHECKS, {}, {}, []
                )
            rollout.promote(registry, own, "1")
            words = ("-m", project.PACKAGE, "rollout", "sync", "--watch", "--every", "0.1")
            sidecar = later.enter_context(project.start(server, *words, ML_TRACKING_URI=remote.url))
            later.callback(sidecar.kill)
            assert sidecar.stdout is not None
            lines.append(sidecar.stdout.readline())
            assert serves(server / "var" / "serving") == "1"
            rollout.promote(registry, own, "2")
            until(lambda: serves(server / "var" / "serving") == "2", 20)
            lines.append(sidecar.stdout.readline())
        lines.append(sidecar.stdout.readline())
        assert serves(server / "var" / "serving") == "2"
        # One byte of what the server keeps.
        (model,) = (
            path
            for path in (remote.folder / "artifacts").rglob(bundle.MODEL)
            if registry_digest(tmp_path / "third") == registry_digest(path.parent)
        )
        with model.open("ab") as stream:
            stream.write(b"x")
        with remote.running():
            lines.append(sidecar.stdout.readline())
            registry.promote("3", "2")
            lines.append(sidecar.stdout.readline())
            assert serves(server / "var" / "serving") == "2"
            shutil.copyfile(tmp_path / "third" / bundle.MODEL, model)
            until(lambda: serves(server / "var" / "serving") == "3", 20)
            lines.append(sidecar.stdout.readline())
            found = registry.find_alias(CHAMPION)
            assert found is not None
            assert found.number == "3"
    told = [line.partition("the serving folder ")[2].strip() for line in lines]
    assert [told[at] for at in (0, 1, 3, 5)] == [f"holds version {number}" for number in (1, 2, 2, 3)]
    assert told[2] == "is unchanged: no MLflow server answers: Connection refused"
    assert told[4].startswith("is unchanged: ")
    assert "model.onnx was changed" in told[4]


def registry_digest(folder: Path) -> str:
    return sha256_file(folder / bundle.MANIFEST)


def test_missing_registry_is_named_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote").mkdir()
    remote = Remote(tmp_path / "remote")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        Registry.open(settings(tmp_path, remote), store.NAME)
    told = f"ML_TRACKING_URI: '{remote.url}' cannot be used: no MLflow server answers: Connection refused"
    assert str(refused.value) == told


@pytest.mark.full
def test_ui_shows_address_of_remote_registry(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    remote, path = Remote(tmp_path / "remote"), project.make(tmp_path / "project", 100)
    words = ("-m", project.PACKAGE, "ui")
    with remote.running(), project.start(path, *words, ML_TRACKING_URI=remote.url) as shown:
        assert shown.stdout is not None
        lines = [shown.stdout.readline() for _ in range(3)]
        shown.send_signal(signal.SIGINT)
        shown.communicate(timeout=30)
    assert lines[0].endswith(f"{remote.url} (ML_TRACKING_URI)\n")
    assert "Prefect" in lines[1]
    assert lines[2] == "Press Ctrl-C to stop it.\n"
    assert shown.returncode == 0
