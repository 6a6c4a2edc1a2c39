"""A retraining that is killed at any point leaves nothing half-made; the same command completes it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flywheel_ml.utils.process import is_alive
from library.helpers import project, retraining
from library.helpers.commands import wait_until

POINTS = (
    "prepare",
    "data",
    "raw data",
    "ingest",
    "split",
    "train",
    "package",
    "gates",
    "compare",
    "branch",
    "register",
)
"""A kill follows the end of each of these steps, so it hits the next one."""
ARGUMENTS = ("-m", project.PACKAGE, "retrain", "--with-log")


def prepare(trained: Path, to: Path) -> Path:
    """Copy a trained project, and give it newer rows and an uncommitted edit."""
    path = project.copy(trained, to, history=True)
    project.set_params(path, {"gates": {"significance_level": 1e-9}})
    project.commit(path, "Trained")
    retraining.add_newer_rows(path)
    (path / "README.md").write_text("mine")
    return path


def find_worker(pid: int) -> int:
    """Return the worker among the child processes of a command."""
    listed = ["pgrep", "-P", str(pid), "-f", "retraining.worker"]
    return int(subprocess.run(listed, capture_output=True, text=True, check=True).stdout)


def kill_after(path: Path, step: str, kills_worker: bool) -> None:
    """Start a retraining, and kill its worker, or the command, soon after a step ended."""
    with project.start(path, *ARGUMENTS, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        seen = []
        while (line := process.stdout.readline()) and f"✓ {step} " not in line and f"· {step} " not in line:
            seen.append(line)
        assert line, "".join(seen)
        time.sleep(0.1)
        started = project.children(process.pid)
        if kills_worker:
            os.kill(find_worker(process.pid), signal.SIGKILL)
        else:
            process.kill()
        process.communicate(timeout=600)
        assert process.returncode != 0
        wait_until(lambda: not any(map(is_alive, started)), 20)


def list_versions(path: Path) -> list[tuple[int, str]]:
    """Every version with the status of its run."""
    client = MlflowClient(f"sqlite:///{path}/mlflow.db")
    return [
        (int(found.version), client.get_run(found.run_id).info.status)
        for found in client.search_model_versions("name = 'flights'")
    ]


@pytest.mark.chaos
@pytest.mark.full
def test_kills_at_every_point_leave_nothing_half_made(trained_project: project.PipelineRuns, tmp_path: Path) -> None:
    path = prepare(trained_project.path, tmp_path / "project")
    before = retraining.hash_untouched(path)
    for at, step in enumerate(POINTS):
        kill_after(path, step, kills_worker=at % 2 == 0 and step != "prepare")
        assert retraining.hash_untouched(path) == before
        assert {status for _, status in list_versions(path)} == {"FINISHED"}
        assert json.loads((path / "var/serving/routing.json").read_text())["champion"]["version"] == "1"
    done = project.cli(path, *ARGUMENTS[2:])
    assert done.returncode == 0, done.stderr
    assert "completing a killed retraining" in done.stdout
    assert [number for number, _ in list_versions(path)] == [2, 1]
    (branch,) = project.git(path, "branch", "--list", "retrain/*", "--format", "%(refname:short)").split()
    assert f"on branch {branch}" in done.stdout
    assert retraining.hash_untouched(path) == before
    assert sorted(found.name for found in (path / "var" / "retrain").iterdir()) == [".begin.lock", ".begin.pid"]
    assert not list((path / ".git").rglob("*.lock"))
    client = MlflowClient(f"sqlite:///{path}/mlflow.db")
    assert client.search_runs(["1"], "attributes.status = 'RUNNING'") == []


@pytest.mark.chaos
@pytest.mark.full
def test_two_retrainings_at_once_both_complete(trained_project: project.PipelineRuns, tmp_path: Path) -> None:
    path = prepare(trained_project.path, tmp_path / "project")
    before = retraining.hash_untouched(path)
    dates = ("2013-08-25", "2013-08-28")
    processes = [
        project.start(path, "-m", project.PACKAGE, "retrain", "--as-of", date, stdin=subprocess.DEVNULL)
        for date in dates
    ]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, output + errors
    assert [number for number, _ in list_versions(path)] == [3, 2, 1]
    assert len(project.git(path, "branch", "--list", "retrain/*").split()) == 2
    assert retraining.hash_untouched(path) == before


DRIFTED = f"""
import sys
from datetime import UTC, datetime
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.retraining import policy
from flywheel_ml.flows.bundles import open_champion
from flywheel_ml.monitoring.result import evaluate_window
from flywheel_ml.monitoring.window import count_nothing
from {project.PACKAGE}.project import PROJECT
params, settings = PROJECT.load_params(), Settings.read()
_, bundle = open_champion(PROJECT, settings)
found = evaluate_window(count_nothing(bundle, (), "prediction log", "now"), bundle, params, datetime.now(UTC))
found = found.model_copy(update={{"quality": found.quality.model_copy(update={{"verdict": "degraded"}})}})
print([outcome.text for outcome in policy.apply_policy(PROJECT, settings, params, found).outcomes])
"""
"""Carries out the policy after a window in which the champion is degraded."""


@pytest.mark.chaos
@pytest.mark.full
def test_retraining_by_policy_is_completed_after_a_kill(trained_project: project.PipelineRuns, tmp_path: Path) -> None:
    path = prepare(trained_project.path, tmp_path / "project")
    project.set_params(path, {"policy": {"degraded_quality": "retrain", "windows": 1, "with_log": True}})
    with project.start(path, "-c", DRIFTED, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and "✓ ingest" not in line:
            pass
        assert line
        process.kill()
    done = project.run(path, "-c", DRIFTED)
    assert "completing a killed retraining" in done.stdout, done.stderr
    assert "['version 2 is challenger, on branch retrain/" in done.stdout
    listed = project.cli(path, "decisions").stdout.splitlines()
    assert [line.split()[4:6] for line in listed if "degraded_quality" in line] == [
        ["degraded_quality", "retrain"],
        ["degraded_quality", "alert"],
    ]
    assert "done: version 2 is" in " ".join(listed)
    again = project.run(path, "-c", DRIFTED)
    assert again.stdout.splitlines() == ["[]"]
