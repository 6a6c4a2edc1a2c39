"""A real Prometheus with a real Alertmanager, on free ports, that evaluate the project's rules at once."""

import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from library.helpers.project import ROOT
from library.helpers.servers import Server, wait_for

DEPLOY = ROOT / "deploy"
START_SECONDS = 30.0


class Stack(NamedTuple):
    """Addresses of a running Prometheus and Alertmanager."""

    prometheus: str
    alertmanager: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        url = f"{self.prometheus}/api/v1/query?query={urllib.request.quote(expression)}"  # type: ignore[attr-defined]
        with urllib.request.urlopen(url, timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def find_missing_program() -> str:
    """Return the name of a program that is not installed, or nothing."""
    names = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
    return next((name for name in names if shutil.which(name) is None), "")


@contextmanager
def run_stack(folder: Path, server: Server, webhook: str) -> Iterator[Stack]:
    """Run both programs with the project's configuration; only durations and addresses differ.

    Args:
        folder: folder of their files.
        server: the server to scrape.
        webhook: address to which Alertmanager posts.
    """
    folder.mkdir()
    ports = _find_free_ports(2)
    stack = Stack(*(f"http://127.0.0.1:{port}" for port in ports))
    _write_configuration(folder, server.url.removeprefix("http://"), f"127.0.0.1:{ports[1]}", webhook)
    prometheus = [
        "prometheus",
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{ports[0]}",
    ]
    alertmanager = [
        "prometheus-alertmanager",
        f"--config.file={folder}/alertmanager.yaml",
        f"--storage.path={folder}/alertmanager",
        f"--web.listen-address=127.0.0.1:{ports[1]}",
        "--cluster.listen-address=",
    ]
    with ExitStack() as started:
        for command in (alertmanager, prometheus):
            log = started.enter_context((folder / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
            started.callback(process.wait)
            started.callback(process.terminate)
        for url in stack:
            wait_for(lambda url=url: _is_ready(url), START_SECONDS)  # type: ignore[misc]
        yield stack


def _write_configuration(folder: Path, target: str, alertmanager: str, webhook: str) -> None:
    rules = (DEPLOY / "alerts.yaml").read_text(encoding="utf-8")
    rules = re.sub(r"^( +for: ).*", r"\g<1>1s", rules, flags=re.MULTILINE)
    (folder / "alerts.yaml").write_text(re.sub(r"\[\d+[mhd]\]", "[5s]", rules), encoding="utf-8")
    settings = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    settings["global"] = {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"}
    settings["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    routes = yaml.safe_load((DEPLOY / "alertmanager.yaml").read_text(encoding="utf-8"))
    routes["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    routes["receivers"][0]["webhook_configs"] = [{"url": webhook}]
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(routes))


def _find_free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return True
    except OSError:
        return False
