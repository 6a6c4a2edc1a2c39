"""The serving image, built and run: what it holds, what it may do, and that it loses nothing."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from containers.conftest import build
from containers.engine import Engine
from containers.running import KEY, Container, run_server
from test_generated import example_request

pytestmark = pytest.mark.slow

TRAINING = ("dvc", "matplotlib", "mlflow", "optuna", "pandas", "polars", "prefect", "sklearn")
STOP_TIMEOUT_S = 30.0
MAX_IMAGE_MB = 500
IDS = """
import json, pathlib, sqlite3
print(json.dumps([row[0] for file in pathlib.Path("/srv/log").glob("*.db")
                  for row in sqlite3.connect(file).execute("select id from predictions")]))
"""


@pytest.fixture(scope="module")
def image(engine: Engine, project: Path, base: bool) -> str:
    return build(engine, project, "flight-delays")


@pytest.fixture(scope="module")
def server(engine: Engine, image: str, serving_folder: Path) -> Iterator[Container]:
    """The server with a log on a volume, behind proxy variables that lead nowhere."""
    proxies = [f"--env={name}=http://127.0.0.1:1" for name in ("HTTP_PROXY", "http_proxy")]
    log = ["--volume", "prediction-log:/srv/log"]
    with run_server(engine, image, serving_folder, *proxies, *log) as container:
        yield container


@pytest.fixture(scope="module")
def request_body(server: Container) -> dict[str, Any]:
    server.wait_until_ready()
    with server.client() as client:
        return example_request(client.get("/openapi.json").json())


def test_image_is_small_and_starts_soon(
    engine: Engine,
    image: str,
    base: bool,
    serving_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    volume = ["--volume", "start-log:/srv/log"]
    with run_server(engine, image, serving_folder, *volume) as container:
        seconds = container.wait_until_ready()
        memory = engine.run(
            "stats", "--no-stream", "--format", "{{.MemUsage}}", container.name
        ).partition(" /")[0]
    names = ("python:3.11-slim-bookworm", image)
    under, whole = (engine.inspect(name)["Size"] / 1e6 for name in names)
    kind = "a stand-in" if base else "the registry's"
    with capsys.disabled():
        print(
            f"\nserving image: {whole:.0f} MB, of which {whole - under:.0f} MB above its base "
            f"({kind}); ready after {seconds:.1f} s, {memory} of memory"
        )
    assert whole - under < MAX_IMAGE_MB
    assert seconds < 30


def test_image_holds_no_training_library_and_no_volume(engine: Engine, image: str) -> None:
    code = f"import importlib.util as u; print([n for n in {TRAINING} if u.find_spec(n)])"
    assert engine.run("run", "--rm", "--entrypoint", "python", image, "-c", code) == "[]"
    config = engine.inspect(image)["Config"]
    assert not config.get("Volumes"), "an anonymous volume would stay behind every container"
    assert config["User"] == "10001:10001"


def test_code_is_a_layer_above_the_libraries(
    engine: Engine, project: Path, image: str, tmp_path: Path
) -> None:
    """A change in the README or the code builds and ships no library again."""
    changed = tmp_path / "changed"
    shutil.copytree(project, changed)
    (changed / "README.md").write_text("# Another text\n")
    with (changed / "src" / "flight_delays" / "app.py").open("a") as code:
        code.write("\n# changed\n")
    build(engine, changed, "flight-delays:changed")
    before, after = (
        engine.inspect(name)["RootFS"]["Layers"] for name in (image, "flight-delays:changed")
    )
    # base, folders, libraries | code (and the working folder, which some engines count)
    differ = [number for number, layer in enumerate(before) if layer != after[number]]
    assert len(before) == len(after)
    assert min(differ) == 3


def test_container_is_unprivileged_and_cannot_write(engine: Engine, server: Container) -> None:
    server.wait_until_ready()
    status = engine.run("exec", server.name, "cat", "/proc/1/status")
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert set(found["Uid"].split()) == {"10001"}
    assert {found[name].strip("0 \t") for name in ("CapEff", "CapPrm", "CapBnd")} == {""}
    assert found["NoNewPrivs"].strip() == "1"
    for place in ("/x", "/app/x", "/srv/x", "/srv/serving/x", "/var/tmp/x"):  # noqa: S108
        done = engine.call("exec", server.name, "touch", place)
        assert done.returncode != 0, f"{place} was written"
    assert engine.call("exec", server.name, "touch", "/srv/log/x").returncode == 0


def test_health_means_that_it_can_predict(
    engine: Engine, image: str, server: Container, serving_folder: Path, tmp_path: Path
) -> None:
    """Behind proxy variables and on another port it is healthy, without a model it is not."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o711)
    command = ("serve", "--host", "0.0.0.0", "--port", "9000")  # noqa: S104
    volume = ["--volume", "other-log:/srv/log"]
    other = run_server(engine, image, empty, *volume, command=command, port=9000)
    with other as without_model:
        server.wait_for_health("healthy")
        without_model.wait_until_ready(9000, route="/healthz")
        time.sleep(3)  # an interval of the check
        health = without_model.state()["Health"]
        assert health["Status"] != "healthy"
        assert {entry["ExitCode"] for entry in health["Log"]} == {1}
        shutil.copytree(serving_folder, empty, dirs_exist_ok=True)
        without_model.wait_for_health("healthy")


def test_every_protocol_is_answered(server: Container, request_body: dict[str, Any]) -> None:
    instances = request_body["instances"]
    with server.client() as client:
        document = client.get("/openapi.json").json()
        native = client.post("/predict", json=request_body).json()
        mlflow = client.post("/invocations", json={"dataframe_records": instances}).json()
        name = client.get("/model").json()["name"]
        example = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
        tensors = example["application/json"]["schema"]["examples"][0]
        v2 = client.post(f"/v2/models/{name}/infer", json=tensors)
        assert v2.status_code == 200, v2.text
        found = [prediction["prediction"] for prediction in native["predictions"]]
        assert mlflow["predictions"] == found
        assert {output["name"] for output in v2.json()["outputs"]} >= {"prediction", "id"}
        arrow = client.post(
            "/predict",
            content=b"x",
            headers={"Content-Type": "application/vnd.apache.arrow.stream"},
        )
        assert arrow.status_code == 415
        assert "arrow" in arrow.text, "the answer names the extra that is missing"
        label = {"id": native["predictions"][0]["id"], "label": found[0]}
        assert client.post("/feedback", json={"labels": [label]}).status_code == 200
        assert client.get("/ping").status_code == 200


def test_monitor_in_the_image_says_what_it_lacks(engine: Engine, image: str) -> None:
    done = engine.call("run", "--rm", "--network", "none", image, "monitor")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "which is not installed here; run it in the project after `make install`" in line


def test_killed_container_keeps_every_acknowledged_row(
    engine: Engine, image: str, serving_folder: Path, request_body: dict[str, Any]
) -> None:
    """`kill -9` of the container under load; the next one finds all rows on the volume."""
    volume = ["--volume", "kept-log:/srv/log"]
    with run_server(engine, image, serving_folder, *volume) as container:
        container.wait_until_ready()
        acknowledged: list[str] = []
        callers = [
            threading.Thread(
                target=call_until_it_fails, args=(container, request_body, acknowledged)
            )
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        time.sleep(1.5)
        engine.run("kill", "--signal", "KILL", container.name)
        for caller in callers:
            caller.join(timeout=30)
        assert container.state()["ExitCode"] == 137
    python = ["run", "--rm", "--entrypoint", "python", *volume, image, "-c", IDS]
    kept = json.loads(engine.run(*python))
    assert len(acknowledged) > 50
    assert set(acknowledged) - set(kept) == set()
    assert len(kept) == len(set(kept))


def call_until_it_fails(
    container: Container, body: dict[str, Any], acknowledged: list[str]
) -> None:
    with container.client() as client:
        while True:
            try:
                answer = client.post("/predict", json=body)
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            acknowledged += [prediction["id"] for prediction in answer.json()["predictions"]]


def test_stop_drains_within_the_stop_timeout(
    engine: Engine, image: str, serving_folder: Path, request_body: dict[str, Any]
) -> None:
    """Requests under way are answered, one with a slow body too; exit status 0."""
    volume = ["--volume", "stop-log:/srv/log"]
    with run_server(engine, image, serving_folder, *volume) as container:
        container.wait_until_ready()
        slow: list[bytes] = []
        sender = threading.Thread(target=send_slowly, args=(container, request_body, slow))
        sender.start()
        time.sleep(1)
        start = time.monotonic()
        engine.run("stop", "--time", str(int(STOP_TIMEOUT_S)), container.name)
        seconds = time.monotonic() - start
        sender.join(timeout=30)
        state = container.state()
    assert state["ExitCode"] == 0, "it was killed instead"
    assert 3 < seconds < STOP_TIMEOUT_S
    assert slow[0].startswith(b"HTTP/1.1 200 ")


def send_slowly(container: Container, body: dict[str, Any], answers: list[bytes]) -> None:
    """Send a prediction whose body takes six seconds."""
    content = json.dumps(body).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    host, port = container.address().removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        step = -(-len(content) // 6)
        for start in range(0, len(content), step):
            connection.sendall(content[start : start + step])
            time.sleep(1)
        answers.append(connection.recv(65536))


def test_largest_bodies_stay_within_the_memory_limit(
    engine: Engine, server: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen callers with bodies of nearly ten megabytes: answered or rejected, not killed."""
    server.wait_until_ready()
    host = engine.inspect(server.name)["HostConfig"]
    assert host["Memory"] == 512 * 2**20
    assert host["PidsLimit"] == 256
    body = b'{"instances": [' + b" " * 9_900_000 + b"]}"
    statuses: list[int] = []

    def send() -> None:
        with server.client() as client:
            for _ in range(3):
                headers = {"Content-Type": "application/json"}
                answer = client.post("/predict", content=body, headers=headers)
                statuses.append(answer.status_code)

    callers = [threading.Thread(target=send) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    used = engine.run("stats", "--no-stream", "--format", "{{.MemUsage}}", server.name)
    with capsys.disabled():
        print(f"\nafter 48 bodies of 9.9 MB from 16 callers: {used}")
    assert len(statuses) == 48
    assert set(statuses) <= {422, 503}
    state = server.state()
    assert (state["Status"], state["OOMKilled"]) == ("running", False)
    with server.client() as client:
        assert client.get("/readyz").status_code == 200
