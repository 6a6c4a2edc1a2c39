"""Runs a job that a server started: reads a `Job` from stdin, and writes its result next to the requests."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from flywheel_ml.core import serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.prediction_log.retention.erase import erase, resume
from flywheel_ml.prediction_log.retention.export import export
from flywheel_ml.prediction_log.retention.jobs import LOWEST_PRIORITY, Job, write_state
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.prune import Profiles, prune
from flywheel_ml.utils.errors import ProjectError


def main() -> None:
    """Run the job; its outcome is in its state file."""
    os.nice(LOWEST_PRIORITY)
    job = Job.model_validate_json(sys.stdin.read())
    log = Log(job.target, Path(job.spool), Path(job.exports))
    try:
        state = {"state": "succeeded", "kind": job.kind, "result": run(log, job)}
    except ProjectError as error:
        state = {"state": "failed", "kind": job.kind, "error": str(error)}
    except OSError as error:
        state = {"state": "failed", "kind": job.kind, "error": error.strerror or str(error)}
    except Exception as error:
        state = {"state": "failed", "kind": job.kind, "error": f"unexpected {type(error).__name__}"}
        write_state(log, job.id, state)
        raise
    write_state(log, job.id, state)


def run(log: Log, job: Job) -> Any:
    """Run a job; returns its result for JSON."""
    if job.kind == "prune":
        done = prune(log, job.age, job.size, _load_profiles(job.profiles), job.force, job.dry_run)
        return done.to_dict()
    if job.kind == "export":
        return export(log, lambda digest, _: find_served(Path(job.serving_folder), digest), *job.span).to_dict()
    if job.kind == "erase":
        return erase(log, job.key).to_dict()
    return [one.to_dict() for one in resume(log)]


def find_served(folder: Path, digest: str | None) -> Contract | None:
    """Find the contract of a model in the serving folder."""
    found = serving_folder.find_bundle(folder, digest) if digest else None
    return Contract.load(found / "contract.yaml", accept_renamed=True) if found else None


def _load_profiles(name: str) -> Profiles | None:
    if not name:
        return None
    module, _, function = name.partition(":")
    found: Profiles = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    main()
