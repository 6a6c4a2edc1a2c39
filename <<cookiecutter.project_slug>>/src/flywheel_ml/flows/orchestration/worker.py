"""A worker: a process in a copy of the project, which imports the copy's code and leaves its answer in a file."""

import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel_ml.flows.orchestration.engine import stop_on_exit
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import read_json, write_json

COMMAND = ("-m", f"{__package__}.die_with_parent")


def run_worker(module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a module in a process of its own; returns its exit status.

    The worker ends with its standard input, so also when this process is killed.

    Args:
        module: whose `main` calls `write_answer`.
        arguments: of the command line.
        folder: where it runs.
        environment: of the process.
    """
    command = [sys.executable, *COMMAND, module, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    with stop_on_exit(process):
        return process.wait()


def write_answer(path: Path, name: str, trace: Path, work: Callable[[], Mapping[str, Any]]) -> None:
    """Do the work of this process, and write what it returns, or its error, to a JSON file.

    Args:
        path: the file.
        name: of the work, for errors of the system that name no file.
        trace: file for the traceback of an unexpected error.
        work: what to do.
    """
    try:
        answer = work()
    except ProjectError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    except OSError as error:
        answer = {"error": f"{error.filename or name}: {error.strerror or error}", "exit_code": 1}
    except Exception as error:
        trace.write_text(traceback.format_exc(), encoding="utf-8")
        text = " ".join(str(error).split())[:300]
        shown = f"unexpected {type(error).__name__}: {text}: a bug in this program (see {trace})"
        answer = {"error": shown, "exit_code": 1}
    write_json(path, answer)


def read_answer(path: Path) -> Mapping[str, Any]:
    """Read the answer of a worker.

    Raises:
        ProjectError: the worker's error.
    """
    answer: Mapping[str, Any] = read_json(path)
    if "error" in answer:
        error = ProjectError(answer["error"])
        error.exit_code = answer["exit_code"]
        raise error
    return answer
