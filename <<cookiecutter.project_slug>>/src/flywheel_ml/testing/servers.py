"""Serving folders and servers on free ports, for tests."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.utils import files

START_SECONDS = 30.0


class ServingFolder:
    """A serving folder as a rollout writes it."""

    def __init__(self, path: Path, bundle_path: Path) -> None:
        self.path = path
        self._source = bundle_path

    def bundle(self, version: str) -> Path:
        """Return the folder of a version's bundle."""
        return self.path / serving_folder.BUNDLES / version

    def add(
        self, version: str, edit: Callable[[str], str] = str, model: bytes | None = None, **facts: Any
    ) -> serving_folder.BundleRef:
        """Add a copy of the bundle with its own card, and optionally another contract text, model or facts."""
        path = self.bundle(version)
        shutil.copytree(self._source, path)
        if model is not None:
            (path / bundle.MODEL).write_bytes(model)
        manifest = bundle.Manifest.model_validate_json((path / bundle.MANIFEST).read_text(), strict=False)
        (path / bundle.CARD).write_text(f"version {version}\n")
        contract = path / bundle.CONTRACT
        contract.write_text(edit(contract.read_text()))
        known = {**manifest.model_dump(exclude={"files"}), "contract_sha256": Contract.load(contract).fingerprint()}
        bundle.write_manifest(path, {**known, **facts})
        return self.ref(version)

    def ref(self, version: str) -> serving_folder.BundleRef:
        """Return the reference to a version's bundle as it is now."""
        return serving_folder.BundleRef(
            version=version, digest=files.sha256_file(self.bundle(version) / bundle.MANIFEST)
        )

    def point(
        self,
        champion: serving_folder.BundleRef | None,
        previous: serving_folder.BundleRef | None = None,
        challenger: serving_folder.Challenger | Sequence[serving_folder.Challenger] = (),
        shadow: serving_folder.Shadow | None = None,
    ) -> None:
        """Write the routing."""
        now = serving_folder.Routing(
            name="flights",
            champion=champion,
            previous=previous,
            challengers=(challenger,) if isinstance(challenger, serving_folder.Challenger) else tuple(challenger),
            shadow=shadow,
            updated_at="2013-11-01T00:00:00+00:00",
        )
        serving_folder.write_routing(self.path, now)

    def roll_out(self, version: str, **facts: Any) -> serving_folder.BundleRef:
        """Add a bundle and make it champion."""
        ref = self.add(version, **facts)
        self.point(ref)
        return ref


class Server:
    """The command `serve` of a project, in its own process and in the folder `home`.

    The serving folder is `home/serving`, the prediction log `home/log`. The port is a free one.

    Args:
        package: the project's package.
        options: options of the command.
        under: a command that runs the server by replacing itself with it.
        settings: environment variables.
    """

    def __init__(self, package: str, home: Path, *options: str, under: Sequence[str] = (), **settings: str) -> None:
        self.package = package
        self.home = home
        self._under = under
        self.log = str(home / "log")
        self.errors = home / "stderr.txt"
        self._options = options
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ML_")}
        places = {"ML_SERVING_FOLDER": str(home / "serving"), "ML_PREDICTION_LOG": self.log}
        self._environment = {**inherited, **places, "ML_DRAIN_SECONDS": "0", **settings}

    def __enter__(self) -> Self:
        serve = [sys.executable, "-m", self.package, "serve", "--port", "0", *self._options]
        command = [*self._under, *serve]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=self._environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving on http://"), line + self.errors.read_text()
        self.url = line.removeprefix("serving on ").strip()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client of this server that ignores proxies."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=10, **options)

    def raw(self, request: bytes, read: bool = True) -> bytes:
        """Send raw bytes; returns the first bytes of the response."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
            connection.sendall(request)
            return connection.recv(4096) if read else b""

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the lines that the server has logged so far."""
        return [json.loads(line) for line in self.errors.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def stop(self) -> int:
        """Send SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)
