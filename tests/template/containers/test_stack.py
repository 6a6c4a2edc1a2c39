"""The whole stack, from outside: train, roll out, predict, label, monitor, alert, retrain."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from containers import base_images, stack_images
from containers.conftest import CERTIFICATES, build
from containers.engine import Engine
from processes import free_port, make, run
from test_generated import example_request

pytestmark = [pytest.mark.slow, pytest.mark.full]

USER = 10001
PATIENCE_S = 600.0
MAX_ROWS = 300
PORTS = ("SERVE_PORT", "MLFLOW_PORT", "PREFECT_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT")
QUICKER = {
    'until: "2013-10-01"': 'until: "2013-04-01"',
    "validation_days: 30": "validation_days: 15",
    "test_days: 30": "test_days: 15",
    "    max_iter: 100\n    max_leaf_nodes: 31": "    max_iter: 20\n    max_leaf_nodes: 31",
    "sklearn_default: true": "sklearn_default: false",
    "min_score: 0.62": "min_score: 0.5",
    "min_gain_over_linear: 0.0": "min_gain_over_linear: null",
    "min_slice_score: 0.5": "min_slice_score: 0.0",
    "max_slice_drop: 0.15": "max_slice_drop: 1.0",
    "max_calibration_error: 0.15": "max_calibration_error: 1.0",
}


@pytest.fixture(scope="module")
def trained(
    engine: Engine, project: Path, base: bool, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of the project that has trained on the host, with the images of the stack at hand."""
    if base:
        scratch = tmp_path_factory.mktemp("base") / "git"
        packages = (*base_images.PYTHON_PACKAGES, "git")
        base_images.make_debian_image(engine, "python:3.11-slim-bookworm", packages, scratch)
    stack_images.provide(engine, project, tmp_path_factory.mktemp("images"))
    copy = tmp_path_factory.mktemp("trained") / "flight-delays"
    shutil.copytree(project, copy)
    edit(copy / "params.yaml", QUICKER)
    commit(copy)
    make(copy, "run")
    commit(copy)
    return copy


@pytest.fixture(scope="module")
def stack(engine: Engine, trained: Path) -> Iterator[dict[str, int]]:
    """The running stack; returns the port of each service."""
    with running_stack(engine, trained) as ports:
        yield ports


@contextmanager
def running_stack(engine: Engine, project: Path) -> Iterator[dict[str, int]]:
    ports = {name: free_port() for name in PORTS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**engine.environment, **ports}.items():
            patch.setenv(name, str(value))
        if os.geteuid() == 0:
            subprocess.run(["chown", "--recursive", f"{USER}:{USER}", str(project)], check=True)
        (project / ".env").write_text(
            f"ML_MAX_INSTANCES={MAX_ROWS}\nML_SERVING_FOLDER=var/serving\n"
        )
        try:
            make(project, "stack", f"ARGS={build_options()}")
            yield ports
        finally:
            make(project, "unstack", "VOLUMES=1")


def build_options() -> str:
    secret = f" --secret id=ca,src={CERTIFICATES}" if CERTIFICATES.exists() else ""
    return f"--network host{secret}"


def test_bundle_of_the_training_image_equals_the_hosts(
    engine: Engine, trained: Path, tmp_path: Path
) -> None:
    build(engine, trained, "flight-delays-train", "--target", "train")
    copy = tmp_path / "copy"
    run(tmp_path, "git", "-c", "safe.directory=*", "clone", "--quiet", str(trained), str(copy))
    (copy / "data" / "raw").mkdir(parents=True, exist_ok=True)
    subprocess.run(["chown", "--recursive", f"{USER}:{USER}", str(copy)], check=False)
    user = f"{copy.stat().st_uid}:{copy.stat().st_gid}"
    place = ["--user", user, "--volume", f"{copy}:/project", "--network", "host"]
    trust = ["--volume", f"{CERTIFICATES}:/ca.pem:ro", "--env", "SSL_CERT_FILE=/ca.pem"]
    engine.run(
        "run", "--rm", *place, *(trust if CERTIFICATES.exists() else []), "flight-delays-train"
    )
    names = sorted(path.name for path in (trained / "bundle").iterdir())
    assert sorted(path.name for path in (copy / "bundle").iterdir()) == names
    _, differ, errors = filecmp.cmpfiles(trained / "bundle", copy / "bundle", names, shallow=False)
    assert (differ, errors) == ([], [])


def test_audit_lists_the_libraries_of_the_image(trained: Path) -> None:
    make(trained, "audit")
    components = json.loads((trained / "build" / "sbom.json").read_text())["components"]
    names = {component["name"].lower() for component in components}
    assert {"fastapi", "onnxruntime"} <= names
    assert names & {"mlflow", "polars", "prefect"} == set()
    licences = (trained / "build" / "licences.csv").read_text().splitlines()
    assert licences[0] == "library,version,licence"
    assert len(licences) == len(components) + 1


def test_stack_closes_the_loop(stack: dict[str, int], trained: Path) -> None:
    key = (trained / "var" / "stack" / "api_key").read_text()
    with open_client(stack["SERVE_PORT"], key) as serve:
        wait_until(lambda: serve.get("/readyz").status_code == 200, "the server is ready")
        assert serve.get("/model").json()["version"] == "1"
        body = example_request(serve.get("/openapi.json").json())
        ids = predict_and_label(serve, body["instances"][0], MAX_ROWS)
        assert len(set(ids)) == MAX_ROWS
        more = {"instances": body["instances"][:1] * (MAX_ROWS + 1)}
        assert serve.post("/predict", json=more).status_code == 422, "it does not read .env"

        verdict = run_deployment(stack, "monitoring/hourly")
        assert verdict["state_type"] == "COMPLETED", verdict
        with open_client(stack["ALERTMANAGER_PORT"]) as alertmanager:
            wait_until(lambda: alertmanager.get("/api/v2/alerts").json() != [], "an alert arrives")
        with open_client(stack["PROMETHEUS_PORT"]) as prometheus:
            query = {"query": "max(monitoring_drifted_columns) > 0"}
            wait_until(
                lambda: (
                    prometheus.get("/api/v1/query", params=query).json()["data"]["result"] != []
                ),
                "Prometheus sees the drift through the server",
            )

        edit(trained / "params.yaml", {"max_iter: 20": "max_iter: 25"})
        assert run_deployment(stack, "training/nightly")["state_type"] == "COMPLETED"
        compose(
            trained, "exec", "-T", "worker", "python", "-m", "flight_delays", "rollout", "promote"
        )
        wait_until(lambda: serve.get("/model").json()["version"] == "2", "version 2 serves")
        assert run_deployment(stack, "log_prune/log-prune")["state_type"] == "COMPLETED"


def test_containers_of_the_stack_are_unprivileged(
    stack: dict[str, int], engine: Engine, trained: Path
) -> None:
    names = compose(trained, "ps", "--quiet").split()
    assert len(names) >= 9
    for name in names:
        found = engine.inspect(name)
        assert found["Config"]["User"] == f"{USER}:{USER}", found["Name"]
        host = found["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"]
        assert host["Memory"] > 0
        assert host["LogConfig"]["Config"]["max-size"] == "10m"


def test_secrets_of_the_stack_are_hidden_in_the_project(
    stack: dict[str, int], trained: Path
) -> None:
    """In containers that mount the project, an empty folder is in the place of var/stack."""
    assert len(list((trained / "var" / "stack").iterdir())) > 9
    for service in ("sync", "worker"):
        listing = "ls -A /project/var/stack || true"  # some versions of runc let nobody list it
        assert compose(trained, "exec", "-T", service, "sh", "-c", listing) == ""


def test_repeated_stack_reads_changed_rules(stack: dict[str, int], trained: Path) -> None:
    rules = trained / "deploy" / "alerts.yaml"
    before = rules.read_text()
    name = re.findall(r"alert: (\w+)", before)[0]
    changed = rules.with_name("changed.yaml")
    changed.write_text(before.replace(f"alert: {name}\n", "alert: RenamedByATest\n"))
    changed.replace(
        rules
    )  # as git and most editors do: a new file, which a bind mount does not see
    make(trained, "stack", f"ARGS={build_options()}")
    with open_client(stack["PROMETHEUS_PORT"]) as prometheus:
        wait_until(
            lambda: "RenamedByATest" in prometheus.get("/api/v1/rules").text,
            "Prometheus evaluates the changed rules",
        )
    rules.write_text(before)


def test_second_project_runs_next_to_the_first(
    stack: dict[str, int], engine: Engine, trained: Path, tmp_path: Path
) -> None:
    """All services of both run at once, and the end of the second one leaves the first alone."""
    other = tmp_path / "other"
    shutil.copytree(trained, other, ignore=shutil.ignore_patterns(".venv", "build"))
    for secret in (other / "var" / "stack").iterdir():
        secret.unlink()
    name = read_stack_name(trained)
    edit(other / "deploy" / "compose.yaml", {f"name: {name}\n": "name: other\n"})
    before = count_logged(trained)
    with running_stack(engine, other) as ports:
        assert set(ports.values()) & set(stack.values()) == set()
        key = (other / "var" / "stack" / "api_key").read_text()
        assert key != (trained / "var" / "stack" / "api_key").read_text()
        with open_client(ports["SERVE_PORT"], key) as serve:
            wait_until(lambda: serve.get("/readyz").status_code == 200, "the second server serves")
            body = example_request(serve.get("/openapi.json").json())
            predict_and_label(serve, body["instances"][0], 10)
        wait_until(lambda: count_logged(other) == 10, "the second log has the rows")
        services, seconds = (compose(one, "ps", "--services").split() for one in (trained, other))
        assert sorted(services) == sorted(seconds)
        first, second = (volumes_of(engine, compose(one, "ps", "-q")) for one in (trained, other))
        assert {one["Name"] for one in first} & {one["Name"] for one in second} == set()
    assert count_logged(trained) == before
    with open_client(stack["SERVE_PORT"]) as serve:
        assert serve.get("/readyz").status_code == 200


def read_stack_name(project: Path) -> str:
    content = yaml.safe_load((project / "deploy" / "compose.yaml").read_text())
    return str(content["name"])


def count_logged(project: Path) -> int:
    query = "select count(*) from predictions"
    where = ("--host", "/run/postgresql", "--username", "log", "--dbname", "log")
    words = ("psql", *where, "--tuples-only", "--command", query)
    return int(compose(project, "exec", "-T", "postgres", *words))


def volumes_of(engine: Engine, names: str) -> list[dict[str, Any]]:
    mounts = [mount for name in names.split() for mount in engine.inspect(name)["Mounts"]]
    return [mount for mount in mounts if mount["Type"] == "volume"]


def predict_and_label(serve: httpx.Client, instance: dict[str, Any], count: int) -> list[str]:
    """Send the same row many times, which is drift, with labels; returns the ids."""
    body = {"instances": [instance] * count}
    answer = serve.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    labels = [{"id": row["id"], "label": row["prediction"]} for row in rows]
    assert serve.post("/feedback", json={"labels": labels}).status_code == 200
    return [row["id"] for row in rows]


def run_deployment(stack: dict[str, int], name: str) -> dict[str, Any]:
    """Run a deployment of Prefect and return the run once it ended."""
    with open_client(stack["PREFECT_PORT"]) as prefect:
        page = f"/api/deployments/name/{name}"
        wait_until(lambda: prefect.get(page).status_code == 200, f"the worker offers {name}")
        deployment = prefect.get(page).json()["id"]
        created = prefect.post(f"/api/deployments/{deployment}/create_flow_run", json={}).json()

        def read() -> dict[str, Any]:
            found: dict[str, Any] = prefect.get(f"/api/flow_runs/{created['id']}").json()
            return found

        ends = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        wait_until(lambda: read()["state_type"] in ends, f"{name} ends")
        return read()


def open_client(port: int, key: str = "") -> httpx.Client:
    headers = {"X-API-Key": key} if key else {}
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60
    )


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (httpx.HTTPError, KeyError):
            pass
        time.sleep(1)
    raise AssertionError(f"it did not happen within {PATIENCE_S:.0f} s that {what}")


def compose(project: Path, *arguments: str) -> str:
    given = {"STACK_USER": f"{USER}:{USER}", **os.environ}
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    command = ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]
    done = subprocess.run(
        [*command, "--file", "deploy/compose.yaml", *arguments],
        cwd=project,
        env=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def edit(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text()
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)


def commit(project: Path) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    run(project, "git", "add", "--all")
    run(project, "git", *who, "commit", "--quiet", "--allow-empty", "--message", "Change")
