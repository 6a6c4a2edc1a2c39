"""prefect.yaml is served by one command, and Prefect's own tools can read it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from << cookiecutter.package_name >>.errors import ConfigError

from .. import project
from .conftest import Pages
from .test_consoles import get


def test_schedules_registers_every_deployment_runs_what_is_due_and_ends_on_an_interrupt(pages: Pages) -> None:
    wanted = {
        entry["name"]: entry for entry in yaml.safe_load(Path(project.ROOT / "prefect.yaml").read_text())["deployments"]
    }
    api = f"{pages.prefect}/api"
    command = ("-m", f"{project.PACKAGE}.cli", "schedules")
    with project.start(pages.path, *command, stdin=subprocess.DEVNULL, PREFECT_API_URL=api) as process:
        end = time.monotonic() + 60
        found: list[dict[str, object]] = []
        while len(found) < len(wanted):
            found = json.loads(get(f"{api}/deployments/filter", {}))
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.2)
        assert {str(deployment["name"]) for deployment in found} == set(wanted)
        for deployment in found:
            schedules = deployment["schedules"]
            assert isinstance(schedules, list)
            assert [s["schedule"]["cron"] for s in schedules] == [
                s["cron"] for s in wanted[str(deployment["name"])]["schedules"]
            ]
        hourly = next(deployment for deployment in found if deployment["name"] == "hourly")
        run = json.loads(get(f"{api}/deployments/{hourly['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}}))
        state = ""
        while state not in ("COMPLETED", "FAILED", "CRASHED"):
            state = json.loads(get(f"{api}/flow_runs/{run['id']}"))["state"]["type"]
            assert time.monotonic() < end, state
            time.sleep(0.2)
        assert state == "COMPLETED"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
        assert process.returncode == 0, errors


def test_every_entrypoint_loads_by_prefects_own_loader() -> None:
    check = """
import yaml
from prefect.flows import load_flow_from_entrypoint
for entry in yaml.safe_load(open("prefect.yaml"))["deployments"]:
    print(load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False).name)
"""
    done = project.run(project.ROOT, "-c", check)
    entries = yaml.safe_load((project.ROOT / "prefect.yaml").read_text())["deployments"]
    assert done.stdout.split() == [entry["entrypoint"].rpartition(".")[2] for entry in entries], done.stderr


def test_a_deployment_of_an_unknown_flow_is_named_with_the_nearest(tmp_path: Path) -> None:
    from << cookiecutter.package_name >>.flows import scheduled

    path = tmp_path / "prefect.yaml"
    path.write_text("deployments:\n  - {name: nightly, entrypoint: a.b.trainig}\n")
    with pytest.raises(ConfigError, match="'nightly' names the flow 'trainig'; did you mean 'training'?"):
        scheduled.serve_all(path)
