"""prefect.yaml is served by one command, and Prefect's own tools can read it."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.process import is_alive
from library.helpers import project
from library.helpers.commands import send_request, wait_until

DEPLOYMENTS = yaml.safe_load((project.ROOT / "prefect.yaml").read_text())["deployments"]


def test_schedules_registers_runs_and_stops_on_interrupt(trained_project: project.PipelineRuns, tmp_path: Path) -> None:
    path = project.copy(trained_project.path, tmp_path / "project", history=True)
    wanted = {entry["name"]: entry["schedules"] for entry in DEPLOYMENTS}
    with project.start(path, "-m", project.PACKAGE, "schedules", stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        api = process.stdout.readline().removeprefix("Prefect ").strip() + "/api"

        def state(run: str) -> str:
            return str(json.loads(send_request(f"{api}/flow_runs/{run}"))["state"]["type"])

        def deployments() -> list[Any]:
            return list(json.loads(send_request(f"{api}/deployments/filter", {})))

        wait_until(lambda: len(deployments()) == len(wanted))
        assert {
            deployment["name"]: [schedule["schedule"]["cron"] for schedule in deployment["schedules"]]
            for deployment in deployments()
        } == {name: [schedule["cron"] for schedule in schedules] for name, schedules in wanted.items()}
        hourly = next(deployment["id"] for deployment in deployments() if deployment["name"] == "hourly")
        run = json.loads(send_request(f"{api}/deployments/{hourly}/create_flow_run", {"state": {"type": "SCHEDULED"}}))[
            "id"
        ]
        wait_until(lambda: state(run) in ("COMPLETED", "FAILED", "CRASHED"))
        assert state(run) == "COMPLETED"
        started = project.children(process.pid)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
        assert process.returncode == 0, errors
    wait_until(lambda: not any(is_alive(pid) for pid in started))


def test_every_entrypoint_loads_by_prefects_own_loader() -> None:
    from prefect.flows import load_flow_from_entrypoint

    for entry in DEPLOYMENTS:
        loaded: Any = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        assert loaded.name == entry["entrypoint"].rpartition(".")[2]


def test_a_deployment_of_an_unknown_flow_is_named_with_the_nearest(tmp_path: Path) -> None:
    from flywheel_ml.flows.orchestration import schedules

    path = tmp_path / "prefect.yaml"
    path.write_text("deployments:\n  - {name: nightly, entrypoint: a.b.trainig}\n")
    with pytest.raises(ConfigError, match=r"'nightly' names the flow 'trainig'; did you mean 'training'\?"):
        schedules.serve_deployments(project.PROJECT, path)
