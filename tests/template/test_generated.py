"""The default project does what its README says, by its own Makefile."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

import pre_gen_project
from checkout import REPOSITORY
from conftest import Bake
from processes import (
    free_port,
    listens,
    make,
    run,
    running,
    start,
    stop,
    wait_for_port,
)

pytestmark = pytest.mark.slow

KEEPS_RUNNING = re.compile(r"^make (serve|ui)\b", re.MULTILINE)


BENCHMARKS = (
    "bench",
    "serving -- --rounds 1 --seconds 0.2",
    "swap -- --rounds 1 --seconds 1",
    "growth -- --most 4",
    "flame -- --seconds 1",
    "monitoring -- --rows 2000 --file-rows 20000",
    "drift_power -- --windows 20",
    "gate_power -- --repeats 2",
    "canary_power -- --runs 100",
)


@pytest.fixture(scope="module")
def project(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default project with its environment, made by its own Makefile, below a spaced path."""
    project = bake(tmp_path_factory.mktemp("my projects"))
    make(project, "install")
    return project


@pytest.fixture(scope="module")
def turned(project: Path) -> Path:
    """The project after its first `make run`."""
    make(project, "run")
    return project


def test_help_lists_the_commands(project: Path) -> None:
    text = make(project, "help")
    for verb in ("run", "serve", "score", "monitor", "test", "check", "clean", "help"):
        assert re.search(rf"\b{verb}\b", text), verb


def test_installed_libraries_are_reserved_names(project: Path) -> None:
    """The hook's list is complete: no package may hide a library that some machine installs."""
    locked = tomllib.loads((project / "uv.lock").read_text(encoding="utf-8"))["package"]
    names = {re.sub(r"[-_.]+", "_", package["name"]).lower() for package in locked}
    names.discard("flight_delays")
    possible = {name for name in names if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)}
    assert possible - pre_gen_project.TAKEN == set()


def test_second_run_does_nothing(turned: Path) -> None:
    before = made(turned)
    make(turned, "run")
    assert made(turned) == before


@pytest.mark.full
@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda command: command.partition(" ")[0])
def test_benchmarks_run(turned: Path, command: str) -> None:
    script = REPOSITORY / "tests" / "benchmarks" / "run.py"
    # Tools such as py-spy are next to the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(script), "--project", str(turned), *command.split()],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.full
def test_example_is_replayed_and_stays_untouched(turned: Path) -> None:
    before = made(turned)
    text = make(turned, "replay")
    found = json.loads((turned / "reports/replay/latest.json").read_text(encoding="utf-8"))
    labels = [period["label"] for period in found["periods"]]
    assert labels == [f"{month} 2013" for month in ("Jul", "Aug", "Sep", "Oct", "Nov", "Dec")]
    assert found["agreed"] == found["compared"] > 10_000
    roles = [period["retrained"]["role"] for period in found["periods"] if period["retrained"]]
    assert "challenger" in roles
    assert any(period["promoted"] for period in found["periods"])
    assert "Retraining " in text
    assert made(turned) == before


def test_first_run_leaves_a_clean_git_status(turned: Path) -> None:
    command = ["git", "status", "--porcelain"]
    done = subprocess.run(command, cwd=turned, check=True, capture_output=True, text=True)
    # Lock files are the user's to commit, cards and metrics are theirs to compare.
    unexpected = [
        line
        for line in done.stdout.splitlines()
        if re.search(r"\.(db|sqlite|log|onnx|parquet|joblib)\b|/__pycache__|\bvar/", line)
    ]
    assert unexpected == []


def test_data_and_models_are_pushed_and_pulled(turned: Path) -> None:
    """The default remote works as it comes: cache and outputs gone, pull restores them all."""
    dvc = str(turned / ".venv" / "bin" / "dvc")
    run(turned, dvc, "push", "--quiet")
    outputs = json.loads(run(turned, dvc, "list", ".", "--dvc-only", "--recursive", "--json"))
    folders = {str(Path(entry["path"]).parent) for entry in outputs}
    assert {"data/raw", "data", "data/split", "model", "bundle"} <= folders
    shutil.rmtree(turned / ".dvc" / "cache")
    for entry in outputs:
        (turned / entry["path"]).unlink(missing_ok=True)
    run(turned, dvc, "pull", "--quiet")
    missing = [entry["path"] for entry in outputs if not (turned / entry["path"]).exists()]
    assert missing == []


def test_server_predicts_over_a_socket(turned: Path) -> None:
    port = free_port()
    server = running(turned, port)
    base_url = f"http://127.0.0.1:{port}"
    with server, httpx.Client(base_url=base_url, timeout=30) as client:
        request = example_request(client.get("/openapi.json").json())

        answer = client.post("/predict", json=request)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert len(body["predictions"]) == len(request["instances"])
        assert body["degraded"] is False

        label = {"id": body["predictions"][0]["id"], "label": body["predictions"][0]["prediction"]}
        assert client.post("/feedback", json={"labels": [label]}).is_success

        broken = {"instances": [{**request["instances"][0], "no_such_column": 1}]}
        refused = client.post("/predict", json=broken)
        assert refused.status_code == 422
        assert refused.headers["content-type"].startswith("application/problem+json")
        assert "no_such_column" in refused.text
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_readme_commands_work_verbatim(turned: Path) -> None:
    """Every ```sh block, in order, in one project; servers run until the last block is done.

    Its complete test suite and its own checks (formatter, linter, mypy strict, import-linter) are
    among these commands.
    """
    blocks = shell_blocks((turned / "README.md").read_text(encoding="utf-8"))
    commands = {line for block in blocks for line in block.splitlines()}
    assert {
        "make run",
        "make serve",
        "make score",
        "make test",
        "make check",
    } <= commands
    servers = []
    try:
        for block in blocks:
            script = ["bash", "-euo", "pipefail", "-c", block]
            if KEEPS_RUNNING.search(block):
                port = port_named_in(block)
                assert not listens(port), f"port {port}, which the README names, is in use"
                servers.append(start(turned, *script))
                wait_for_port(port, servers[-1])
            else:
                run(turned, *script)
    finally:
        for server in servers:
            stop(server)


def shell_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```(?:sh|bash|shell)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def port_named_in(block: str) -> int:
    named = re.search(r"PORT=(\d+)", block)
    return int(named[1]) if named else 8000


def made(project: Path) -> dict[str, Any]:
    """Return what a run could change: tracked outputs by content, the registry by its rows."""
    lock = (project / "dvc.lock").read_bytes()
    database = sqlite3.connect(f"file:{project}/mlflow.db?mode=ro", uri=True)
    try:
        rows = [
            database.execute(f"select count(*) from {table}").fetchone()[0]  # noqa: S608
            for table in ("runs", "model_versions", "registered_model_aliases")
        ]
    finally:
        database.close()
    serving = project / "var" / "serving"
    served = {str(path): path.stat().st_mtime_ns for path in serving.rglob("*") if path.is_file()}
    assert served
    return {"lock": lock, "registry": rows, "served": served}


def example_request(document: Any) -> dict[str, Any]:
    """Return the first example of a prediction request that the API's own description gives."""
    if isinstance(document, dict):
        instances = document.get("instances")
        if isinstance(instances, list) and instances and isinstance(instances[0], dict):
            return {"instances": instances}
    nested = document.values() if isinstance(document, dict) else document
    if isinstance(document, dict | list):
        for part in nested:
            found = example_request(part)
            if found:
                return found
    return {}
