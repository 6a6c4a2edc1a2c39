"""Whole replays of small projects: months without rows or labels, refused versions, edits, and `kill -9`."""

import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.flows.replay import launch, workspace
from flywheel_ml.monitoring.replay.result import PeriodResult, ReplayResult
from flywheel_ml.utils.files import read_json
from library.helpers import project, retraining, rows

pytestmark = pytest.mark.full

N_ROWS, SHIFTED = 3200, "distance"
TIMEOUT_SECONDS = 900
OPTIONS = ("--api-rows", "200")


class Replayed(NamedTuple):
    """A project after a replay: its output and result, its files before and after."""

    path: Path
    done: subprocess.CompletedProcess[str]
    result: ReplayResult
    before: Mapping[str, str]
    after: Mapping[str, str]
    left: list[str]

    def get_period(self, label: str) -> PeriodResult:
        return next(one for one in self.result.periods if one.label == label)


def make_project(path: Path, params: Mapping[str, Any]) -> Path:
    """Make a project with eight months; June has no rows, July no labels, and a column drifts from May on."""
    project.make(path)
    contract = Contract.load(path / paths.CONTRACT)
    assert contract.time is not None
    table, time_of_row = rows.make_table(contract, N_ROWS), pl.col(contract.time.name)
    stretched = table.with_columns((rows.START + (time_of_row - rows.START) * 2).alias(contract.time.name))
    months = time_of_row.dt.month()
    later = pl.when(months >= 5).then(pl.col(SHIFTED) * 0.3 + 500).otherwise(pl.col(SHIFTED))
    labels = pl.when(months != 7).then(pl.col(contract.target.name))
    project.write_raw(
        path,
        stretched.filter(months != 6).with_columns(later.alias(SHIFTED), labels.alias(contract.target.name)),
    )
    project.set_params(path, {"seed": 7, **params})
    project.commit(path, "Eight months")
    return path


def edit(path: Path) -> None:
    """Edit the working tree in three ways: none may take part in a replay, or change."""
    project.set_params(path, {"seed": 99})
    project.git(path, "add", "params.yaml")
    (path / "src" / project.PACKAGE / "gates.py").write_text("this is not Python")
    (path / "notes.txt").write_text("mine")


def replay(path: Path, left: list[str], **settings: str) -> Replayed:
    before = hash_project(path)
    done = run(path, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    result = ReplayResult.model_validate_json((path / launch.REPORTS / "latest.json").read_text())
    return Replayed(path, done, result, before, hash_project(path), left)


def run(path: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", project.PACKAGE, "replay", *OPTIONS, *words)
    with project.start(path, *command, stdin=subprocess.DEVNULL, **settings) as process:
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def hash_project(path: Path) -> dict[str, str]:
    found = retraining.hash_untouched(path)
    return {name: value for name, value in found.items() if not name.startswith(("build/", "reports/replay/"))}


def find_processes(folder: Path) -> list[str]:
    """Find processes whose current folder is below a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            current = link.readlink()
        except OSError:
            continue
        if current.is_relative_to(folder):
            found.append(link.parent.name)
    return found


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """A project with edits, without a registry, and with a sink that must receive nothing."""
    path = make_project(tmp_path_factory.mktemp("replayed") / "project", {})
    edit(path)
    return replay(path, [], ML_ALERT_WEBHOOK="http://127.0.0.1:9/none")


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """A project whose retrained versions never have enough labels; the first replay was killed while it served."""
    path = make_project(tmp_path_factory.mktemp("refused") / "project", {"monitor": {"min_labels": 100_000}})
    with project.start(path, "-m", project.PACKAGE, "replay", *OPTIONS) as process:
        while process.poll() is None and not any((path / workspace.FOLDER).glob("*/scored/*-live.parquet")):
            time.sleep(0.05)
        assert len(find_processes(path / workspace.FOLDER)) >= 2  # the worker and its server
        process.kill()
    deadline = time.monotonic() + 10
    while (left := find_processes(path / workspace.FOLDER)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return replay(path, left)


def test_replay_leaves_the_project_untouched(replayed: Replayed) -> None:
    assert replayed.after == replayed.before
    assert not (replayed.path / "mlflow.db").exists()
    assert project.git(replayed.path, "branch", "--list", "retrain/*") == ""
    assert "uncommitted edits took no part" in replayed.done.stdout
    assert replayed.result.has_edits


def test_replay_prints_a_line_for_each_month(replayed: Replayed) -> None:
    lines = [line for line in replayed.done.stdout.splitlines() if line.startswith("✓")]
    assert [line.split(" s ")[0].split()[1] for line in lines] == ["prepare", "train", "May", "Jun", "Jul", "Aug"]
    assert replayed.done.stderr == ""


def test_month_without_rows_is_shown_as_such(replayed: Replayed) -> None:
    period = replayed.get_period("Jun 2013")
    assert (period.rows, period.live, period.verdict, period.drifted) == (0, None, "insufficient data", ())


def test_month_without_labels_has_no_quality(replayed: Replayed) -> None:
    period = replayed.get_period("Jul 2013")
    assert period.rows > 200
    assert (period.labelled, period.live, period.frozen) == (0, None, None)


def test_drift_leads_to_a_retraining_and_a_branch_of_the_copy(replayed: Replayed) -> None:
    period = replayed.get_period("May 2013")
    assert SHIFTED in period.drifted
    assert [one.action for one in period.decided if one.finding == "drift"] == ["retrain"]
    assert period.retrained is not None
    (origin,) = (replayed.path / workspace.FOLDER).glob(f"*/{workspace.ORIGIN}")
    assert "retrain/" in project.git(origin, "branch", "--list", "retrain/*")


def test_retraining_knew_only_labels_that_had_arrived(replayed: Replayed) -> None:
    for period in replayed.result.periods:
        if period.retrained is not None:
            assert period.retrained.until < f"{period.end - timedelta(days=5):%F}"


def test_api_and_batch_agree_to_the_last_bit(replayed: Replayed) -> None:
    assert replayed.result.compared > 300
    assert replayed.result.agreed == replayed.result.compared
    assert all(period.rejected == 0 for period in replayed.result.periods)


def test_killed_replay_leaves_no_process_and_blocks_nothing(refused: Replayed) -> None:
    assert refused.left == []
    assert len([path for path in (refused.path / workspace.FOLDER).glob("[!.]*") if path.is_dir()]) == 1


def test_refused_versions_leave_the_champion_and_the_page_says_so(refused: Replayed) -> None:
    tried = [period.retrained for period in refused.result.periods if period.retrained]
    assert tried
    assert {one.role for one in tried} == {"refused"}
    assert all("enough recent labels" in one.refusal for one in tried)
    assert {version for period in refused.result.periods for version in period.versions} == {"1"}
    text = (refused.path / launch.REPORTS / "latest.html").read_text()
    assert "Retraining changed nothing" in text
    assert "enough recent labels" in text


def test_first_model_that_is_refused_is_one_line(refused: Replayed, tmp_path: Path) -> None:
    path = project.copy(refused.path, tmp_path / "project")
    project.set_params(path, {"gates": {"min_score": 0.999}})
    project.commit(path, "A gate that nothing passes")
    done = run(path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: the first model, of rows before 2013-04-23, was refused and cannot serve: ")
    assert line.endswith("train on more periods (TRAIN=), or change the gate in params.yaml")


def test_adopted_table_is_replayed(refused: Replayed, tmp_path: Path) -> None:
    """Half-years of daily rows in a CSV file; the project's own table and contract stay."""
    path, shop = project.copy(refused.path, tmp_path / "project"), tmp_path / "shop.csv"
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copyfile(project.ROOT / name, path / name)
    project.commit(path, "Files that adopting changes")
    before = hash_project(path)
    generator_rows = rows.make_table(Contract.load(path / paths.CONTRACT), 2400)
    sold_at = pl.col("scheduled_departure")
    is_last = sold_at > sold_at.quantile(0.9)
    generator_rows.select(
        sold_at.alias("sold_at"),
        pl.when(is_last).then(1e6).otherwise(pl.col("distance")).alias("price"),
        pl.when(is_last).then(pl.lit("NEW")).otherwise(pl.col("carrier")).alias("carrier"),
        "late",
    ).write_csv(shop)
    done = run(path, "--data", str(shop), "--target", "late")
    assert done.returncode == 0, done.stderr + done.stdout
    found = read_json(path / launch.REPORTS / "latest.json")
    assert (found["name"], len(found["periods"])) == ("shop", 3)
    assert hash_project(path) == before
    (contract,) = (path / workspace.FOLDER).glob(f"*/{workspace.CLONE}/{paths.CONTRACT}")
    assert "NEW" not in contract.read_text(), "the first model's contract knows the last months"
    last = found["periods"][2]
    assert last["rejected"] > found["periods"][0]["rejected"]
    assert "price" in last["rejection"]
