"""Starts a replay in a copy of the project, waits for it, and puts its pages into reports/replay."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.flows.orchestration import worker
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.replay.params import ReplayParams
from flywheel_ml.flows.replay.timeline.table import check_can_replay, read_timeline
from flywheel_ml.flows.replay.workspace import (
    Workspace,
    build_environment,
    find_raw,
    make_clone,
    make_request,
    open_workspace,
)
from flywheel_ml.flows.versioning import git
from flywheel_ml.monitoring.replay.result import ReplayResult
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import DataError, ProjectError
from flywheel_ml.utils.files import read_json, replacing

REPORTS = paths.REPORTS / "replay"
PAGES = ("latest.html", "latest.json", "latest.svg")
WORKER = "flywheel_ml.flows.replay.worker"


class AdoptedTable(NamedTuple):
    """A table to adopt in the copy: file or address, target, and the time of each row; empty: detected."""

    source: str
    target: str
    time: str = ""


def replay(
    project: Project, params: ReplayParams, progress: Progress, adopted: AdoptedTable | None = None
) -> ReplayResult:
    """Replay the project's own table, or another one, with the code of the last commit.

    Nothing but reports/replay changes in the project. The folder of the replay stays until the next one.

    Args:
        project: the project.
        params: how time is compressed.
        progress: prints a line for each step.
        adopted: a table to adopt first.

    Raises:
        Busy: another replay is running.
        ConfigError: rows have no time, or there is no commit.
        ProjectError: a step failed.
    """
    with open_workspace(make_request(params)) as workspace:
        with progress.step("prepare", "copy of the project") as step:
            folder = make_clone(workspace)
            if adopted is None:
                check_can_replay(Contract.load(folder / paths.CONTRACT))
            step.note = f"copy of commit {workspace.request.commit[:8]}"
            if workspace.request.has_edits:
                step.note += "; uncommitted edits take no part"
        if adopted is not None:
            with progress.step("adopt", adopted.source) as step:
                _adopt(project, folder, adopted, params)
                step.note = f"{adopted.source}, to predict '{adopted.target}'"
        return _run_worker(project, workspace, folder)


def _adopt(project: Project, folder: Path, table: AdoptedTable, params: ReplayParams) -> None:
    """Adopt a table in the copy and commit the result, because retrainings start from a commit.

    Contract and split are proposed from the periods for training alone: ranges, categories and missing values of later
    periods would be knowledge of the future. So the table is adopted twice, first to read it and to find its times.
    """
    source = table.source if "://" in table.source else str(Path(table.source).absolute())
    _call_adopt(project, folder, "--target", table.target, *(["--time", table.time] if table.time else []), source)
    contract = Contract.load(folder / paths.CONTRACT)
    check_can_replay(contract)
    assert contract.time is not None
    timeline = read_timeline(folder / find_raw(folder), contract, params)
    rows, began = tables.read(folder / find_raw(folder), contract), timeline.get_period(timeline.trained).start
    known = folder.parent / "known.parquet"
    tables.write(rows.filter(pl.col(contract.time.name) < began), known)
    names = ("--target", contract.target.name, "--time", contract.time.name, "--name", contract.name)
    _call_adopt(project, folder, *names, str(known))
    tables.write(_to_types(rows, Contract.load(folder / paths.CONTRACT)), folder / find_raw(folder))
    git.call_git("add", "--all", "--", ".", folder=folder)
    command = ["-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message"]
    git.call_git(*command, "chore: adopt the table to replay", folder=folder)


def _call_adopt(project: Project, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", project.package, "adopt", "--yes", "--force", *arguments],
        cwd=folder,
        env=build_environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["adopt failed"]
        raise DataError(f"DATA: {lines[-1].removeprefix('error: ')}")


def _to_types(rows: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Convert columns to the types of a contract; a column whose values would change stays as it is."""
    converted = []
    for column in contract.columns:
        values = rows[column.name]
        wanted = values.cast(tables.DTYPES[column.type], strict=False)
        converted.append(wanted if wanted.cast(values.dtype, strict=False).equals(values) else values)
    return pl.DataFrame(converted)


def _run_worker(project: Project, workspace: Workspace, folder: Path) -> ReplayResult:
    arguments = (project.reference, str(workspace.folder))
    status = worker.run_worker(WORKER, arguments, folder, build_environment(folder))
    if not workspace.answer.is_file():
        raise ProjectError(f"the replay's process ended with status {status}; its folder is {workspace.folder}")
    worker.read_answer(workspace.answer)
    for name in PAGES:
        with replacing(REPORTS / name) as part:
            shutil.copyfile(workspace.folder / name, part)
    return config_model.parse(read_json(REPORTS / "latest.json"), ReplayResult, name="latest.json")
