"""Jobs that a server starts as processes of their own, and their states.

<log>/.requests/job-<id>.json    state, result or error; never a key
"""

import json
import re
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from flywheel_ml.prediction_log.retention.export import FOREVER_US
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.requests import FOLDER
from flywheel_ml.prediction_log.rows import new_id
from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.files import replacing
from flywheel_ml.utils.process import is_alive

LOWEST_PRIORITY = 19
"""Niceness of a job: it takes the time that servers leave."""
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long the state of a job is kept."""
_ID = re.compile(r"[0-9a-f]{32}")


class Job(StrictModel):
    """A job, as the process that runs it reads it.

    Attributes:
        id: name of the job.
        target: the log, with `spool` and `exports` as in `Log`.
        age_hours: for `prune`, and `size` in bytes.
        profiles: `module:function` of `prune.Profiles`; empty if no profiles are kept.
        span: for `export`: since and until in microseconds.
        key: for `erase`.
    """

    id: str = Field(default_factory=new_id)
    kind: Literal["prune", "export", "erase", "resume"]
    target: str
    spool: str
    exports: str
    serving_folder: str = ""
    age_hours: int | None = None
    size: int | None = None
    force: bool = False
    dry_run: bool = False
    profiles: str = ""
    span: tuple[int, int] = (0, FOREVER_US)
    key: str = ""

    @property
    def age(self) -> timedelta | None:
        """The age of rows to prune."""
        return None if self.age_hours is None else timedelta(hours=self.age_hours)


def start(log: Log, job: Job) -> "subprocess.Popen[bytes]":
    """Start a job in a process of its own, which survives this one; the caller waits for it."""
    _remove_old(log)
    command = [sys.executable, "-m", "flywheel_ml.prediction_log.retention"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin is not None
    write_state(log, job.id, {"state": "running", "kind": job.kind, "pid": process.pid})
    with process.stdin as stream:
        # The key is not an argument, which every user of the machine could read.
        stream.write(job.model_dump_json().encode())
    return process


def write_state(log: Log, name: str, state: dict[str, Any]) -> None:
    """Write the state of a job."""
    with replacing(log.folder / FOLDER / f"job-{name}.json") as part:
        part.write_text(json.dumps(state), encoding="utf-8")


def read_state(log: Log, name: str) -> dict[str, Any] | None:
    """Return the state of a job; None if it is unknown."""
    if not _ID.fullmatch(name):
        return None
    try:
        state: dict[str, Any] = json.loads((log.folder / FOLDER / f"job-{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if state["state"] == "running" and not is_alive(state["pid"]):
        state = {"state": "failed", "kind": state["kind"], "error": "the job was killed; run it again to complete it"}
    return {name: value for name, value in state.items() if name != "pid"}


def _remove_old(log: Log) -> None:
    for path in (log.folder / FOLDER).glob("job-*.json"):
        if time.time() - path.stat().st_mtime > KEPT_SECONDS:
            path.unlink(missing_ok=True)
