"""The steps of a retraining that training does not have: its data, the comparison, the branch, the result."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.data.adoption.writing import render_until
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.retraining import clone
from flywheel_ml.flows.retraining.compare import compare_with_champion
from flywheel_ml.flows.retraining.logged_rows import read_labelled_rows
from flywheel_ml.flows.retraining.request import DATA, Request, Workspace
from flywheel_ml.flows.training import TrainingContext
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.utils import config_model, formatting
from flywheel_ml.utils.errors import ConfigError, DataError
from flywheel_ml.utils.files import read_json, replacing, sha256_file, write_json

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Version


class RetrainingResult(config_model.StrictModel):
    """Result of a retraining: version, role, branch and commit, and the gates that refused."""

    version: str
    role: str
    branch: str
    commit: str
    rows: int
    logged_rows: int
    checks: tuple[GateResult, ...]

    @property
    def refusal(self) -> str:
        """Why the version was refused: the last check, which compares recent labels, and how many more failed."""
        failed = [check for check in self.checks if not check.passed]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{failed[-1].gate}: {failed[-1].reason}{more}" if failed else ""


class RetrainingContext(NamedTuple):
    """State that the steps share; the current folder is the clone, `source` is the project that was cloned."""

    training: TrainingContext
    workspace: Workspace
    source: Path

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.workspace.request

    @classmethod
    def begin(
        cls, project: Project, settings: Settings, progress: Progress, workspace: Workspace, source: Path
    ) -> Self:
        """Set `data.until` in the clone's params.yaml, and begin training there."""
        if until := workspace.request.until:
            before = paths.PARAMS.read_text(encoding="utf-8")
            with replacing(paths.PARAMS) as part:
                part.write_text(render_until(before, until), encoding="utf-8")
        return cls(TrainingContext.begin(project, settings, progress), workspace, source)


def collect_data(context: RetrainingContext) -> None:
    """Copy the project's raw table into the clone, with labelled rows of the log if asked for."""
    raw = context.training.params.data.raw
    with context.training.progress.step("data", "raw table and labelled rows") as step:
        if _is_collected(context.workspace, raw):
            step.note, step.idle = "as the killed run collected it", True
            return
        engine.task("data", _copy_table, context.source / raw, raw)
        rows = engine.task("logged rows", _append_logged_rows, context.training, raw) if context.request.with_log else 0
        found = {"logged_rows": rows, "sha256": sha256_file(raw) if raw.is_file() else ""}
        write_json(context.workspace.folder / DATA, found)
        until = f"rows before {context.request.until}" if context.request.until else "all rows"
        step.note = until + (
            f"; {formatting.rows(rows)} of the prediction log added" if context.request.with_log else ""
        )


def compare(context: RetrainingContext) -> list[GateResult]:
    """Compare candidate and champion on recent labelled rows that neither was trained on."""
    with context.training.progress.step("compare", "on recent labelled rows") as step:
        checks = engine.task("compare recent", compare_with_champion, context.training, context.request.with_log)
        failed = [check.gate for check in checks if not check.passed]
        step.note = f"refused: {', '.join(failed)}" if failed else checks[-1].reason
    return checks


def commit_branch(context: RetrainingContext) -> None:
    """Commit parameters, lock file, reports and pointers, and put the branch into the project's repository."""
    with context.training.progress.step("branch", context.request.branch) as step:
        until = f" up to {context.request.until}" if context.request.until else ""
        commit = engine.task("branch", clone.commit_result, context.request, f"chore(retrain): train on rows{until}")
        step.note = f"{context.request.branch} is commit {commit[:8]}"


def finish(context: RetrainingContext, version: "Version", checks: list[GateResult]) -> RetrainingResult:
    """Return the result."""
    from flywheel_ml.flows.versioning import git

    return RetrainingResult(
        version=version.number,
        role=context.training.registry.get_state(version.number).role,
        branch=context.request.branch,
        commit=git.get_commit(),
        rows=read_json(paths.REPORTS / "ingest.json")["rows"],
        logged_rows=read_json(context.workspace.folder / DATA)["logged_rows"],
        checks=tuple(checks),
    )


def _is_collected(workspace: Workspace, raw: Path) -> bool:
    path = workspace.folder / DATA
    if not path.is_file():
        return False
    return not (sha256 := read_json(path)["sha256"]) or (raw.is_file() and sha256_file(raw) == sha256)


def _copy_table(source: Path, raw: Path) -> None:
    """Copy the raw table if the project has it; else DVC restores it, or the project's source fetches it."""
    if not source.is_file():
        return
    with replacing(raw) as part:
        before = source.stat()
        part.write_bytes(source.read_bytes())
        after = source.stat()
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise DataError(f"{source} changed while it was copied; retrain when it is complete")


def _append_logged_rows(context: TrainingContext, raw: Path) -> int:
    """Append labelled rows of the log to the raw table in the clone; return their number."""
    from flywheel_ml.flows import training

    if raw.suffix.lower() != ".parquet":
        raise ConfigError(f"WITH_LOG needs a raw table in Parquet, and data.raw is {raw}; convert it, or drop WITH_LOG")
    training.provide_raw_data(context.project, raw)
    contract, table = context.contract, tables.read(raw, context.contract)
    until = context.params.data.until and contract.to_time_zone(context.params.data.until)
    known = _select_until(table, contract, until)
    rows = read_labelled_rows(context.settings.prediction_log, contract, known, until)
    if rows.is_empty():
        return 0
    names = [name for name in rows.columns if name in table.columns]
    if wrong := [name for name in names if table.schema[name] != rows.schema[name]]:
        raise DataError(
            f"{raw}: '{wrong[0]}' is {table.schema[wrong[0]]}, not as contract.yaml says; correct the table"
        )
    tables.write(pl.concat([known, rows.select(names)], how="diagonal"), raw)
    return rows.height


def _select_until(table: pl.DataFrame, contract: Contract, until: datetime | None) -> pl.DataFrame:
    """Select the rows before `until`: later ones are not used, and may be in the log too."""
    if contract.time is None or until is None:
        return table
    time = pl.col(contract.time.name)
    return table.filter(time.is_null() | (time < until))
