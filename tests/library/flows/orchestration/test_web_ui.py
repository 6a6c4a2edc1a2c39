"""One command shows MLflow's pages and Prefect's, and takes both away with it."""

import json
import signal

from flywheel_ml.utils.process import is_alive
from library.flows.conftest import Pages
from library.helpers import project
from library.helpers.commands import send_request, wait_until


def test_both_addresses_are_printed_and_answer(pages: Pages) -> None:
    assert "MLflow" in pages.lines[0]
    assert "Prefect" in pages.lines[1]
    assert pages.lines[2] == "Press Ctrl-C to stop both.\n"
    assert b"MLflow" in send_request(pages.mlflow)
    assert b"Prefect" in send_request(pages.prefect)


def test_mlflow_shows_the_registered_model(pages: Pages) -> None:
    found = json.loads(send_request(f"{pages.mlflow}/api/2.0/mlflow/registered-models/search"))
    assert found["registered_models"][0]["aliases"] == [{"alias": "champion", "version": "1"}]


def test_prefect_lists_killed_run_as_crashed_next_as_completed(pages: Pages) -> None:
    runs = json.loads(send_request(f"{pages.prefect}/api/flow_runs/filter", {}))
    assert sorted(run["state"]["type"] for run in runs) == ["COMPLETED", "CRASHED"]
    assert all(run["name"].startswith("training by process ") for run in runs)


def test_a_step_of_a_flow_is_retried_by_prefect_as_it_is_without(pages: Pages) -> None:
    flaky = """
from flywheel_ml.utils.errors import DataError
from flywheel_ml.flows.orchestration import engine
calls = []
def flaky(fault):
    calls.append(1)
    if len(calls) < 3:
        raise fault
    return len(calls)
engine.retry_policy.set(engine.RetryPolicy(3, 0.05))
def body():
    print(engine.task("flaky", flaky, OSError("no route")))
    calls.clear()
    try:
        engine.task("refused", flaky, DataError("bad rows"))
    except DataError:
        print(len(calls))
with engine.connect_api(None):
    engine.run_flow("retries", body)
"""
    done = project.run(pages.path, "-c", flaky, PREFECT_API_URL=f"{pages.prefect}/api")
    assert done.stdout.splitlines() == ["3", "1"], done.stderr
    (run,) = json.loads(
        send_request(f"{pages.prefect}/api/flow_runs/filter", {"flows": {"name": {"any_": ["retries"]}}})
    )
    tasks = json.loads(
        send_request(f"{pages.prefect}/api/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    )
    assert {task["name"].split("-")[0]: (task["state"]["type"], task["run_count"]) for task in tasks} == {
        "flaky": ("COMPLETED", 3),
        "refused": ("FAILED", 1),
    }


def test_an_interrupt_ends_both_and_leaves_nothing(pages: Pages) -> None:
    started = project.children(pages.process.pid)
    assert len(started) == 2
    pages.process.send_signal(signal.SIGINT)
    output, errors = pages.process.communicate(timeout=30)
    assert (pages.process.returncode, output, errors) == (0, "", "")
    wait_until(lambda: not any(is_alive(pid) for pid in started))
