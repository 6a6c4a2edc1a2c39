"""Steps that use external systems are retried, others are not; one process at a time; a kill releases the lock."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.orchestration.engine import RetryPolicy
from flywheel_ml.utils.errors import Busy, DataError, ProjectError
from flywheel_ml.utils.process import is_alive
from library.helpers import project
from library.helpers.commands import wait_until


class Flaky:
    """A step that fails some times before it works; remembers when it was called."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.calls: list[float] = []

    def __call__(self, answer: str) -> str:
        self.calls.append(time.perf_counter())
        if len(self.calls) <= len(self.failures):
            raise self.failures[len(self.calls) - 1]
        return answer


class Unreachable(ProjectError):
    """A failure of an external system that a person should see as one line."""

    transient = True


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    token = engine.retry_policy.set(RetryPolicy(retries=3, first_delay=0.02))
    yield
    engine.retry_policy.reset(token)


@pytest.mark.parametrize("fault", [OSError("no route"), TimeoutError(), Unreachable("later")])
def test_what_the_world_broke_is_tried_again_later_and_later(fault: Exception) -> None:
    step = Flaky([fault, fault, fault])
    assert engine.task("step", step, "done") == "done"
    waits = [after - before for before, after in zip(step.calls, step.calls[1:], strict=False)]
    assert len(waits) == 3
    assert all(wait >= 0.02 * 2**at for at, wait in enumerate(waits))


def test_patience_ends_with_the_error_itself() -> None:
    step = Flaky([OSError(str(number)) for number in range(9)])
    with pytest.raises(OSError, match="3"):
        engine.task("step", step, "never")
    assert len(step.calls) == 4


@pytest.mark.parametrize("fault", [DataError("bad rows"), ValueError("a bug"), KeyError("a bug")])
def test_what_trying_again_does_not_mend_fails_at_once(fault: Exception) -> None:
    step = Flaky([fault])
    with pytest.raises(type(fault)):
        engine.task("step", step, "never")
    assert len(step.calls) == 1


HOLD = """
import sys
from pathlib import Path
from flywheel_ml.flows.orchestration import engine
with engine.lock_project(Path("var"), "run", doing="adopt"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_names_its_holder_and_is_released_by_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with project.start(tmp_path, "-c", HOLD, stdin=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=rf"another `adopt` is running in this project \(process {other.pid}\); wait"):
            engine.lock_project(Path("var"), "run").__enter__()
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with engine.lock_project(Path("var"), "run"):
        pass


def test_an_api_may_be_named_by_the_environment_or_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert not engine.has_api()
    Path(".env").write_text("PREFECT_API_URL=http://127.0.0.1:4200/api\n")
    assert engine.has_api()
    Path(".env").unlink()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert engine.has_api()


def test_a_server_that_cannot_start_is_one_line_that_names_its_log(tmp_path: Path) -> None:
    process = engine.spawn(["-c", "raise SystemExit(7)"], tmp_path / "server.log", {})
    with (
        engine.stop_on_exit(process),
        pytest.raises(ProjectError, match=r"Prefect's server did not start \(exit status 7\)"),
    ):
        engine.wait_for_server(process, "http://127.0.0.1:9", "Prefect", tmp_path / "server.log")


TREE = '''
import sys
from pathlib import Path
from flywheel_ml.flows.orchestration import engine
Path("forest.py").write_text("""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
""")
command = ["-m", "flywheel_ml.flows.orchestration.die_with_parent", "forest"]
print(engine.spawn(command, Path("log"), {}).pid, flush=True)
sys.stdin.read()
'''


@pytest.mark.chaos
def test_killed_process_takes_its_grandchildren_along(tmp_path: Path) -> None:
    with project.start(tmp_path, "-c", TREE, stdin=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: (tmp_path / "log").read_text().endswith("\n"))
        grandchild = int((tmp_path / "log").read_text())
        parent.kill()
        parent.communicate()
    wait_until(lambda: not is_alive(child) and not is_alive(grandchild))
