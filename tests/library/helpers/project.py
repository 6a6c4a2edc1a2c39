"""Small projects: the example's contract and pipeline, a few thousand rows, a model that trains in a second."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import polars as pl
import yaml

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.data import tables
from flywheel_ml.utils.process import is_alive
from library.helpers import rows
from library.helpers.example import VARIABLE

ROOT = Path(os.environ[VARIABLE])
PACKAGE = "flight_delays"
PROJECT: Project = import_reference(f"{PACKAGE}.project:PROJECT")
AUDIT_HOOK = Path(__file__).parent / "audit_hook"
RAW = Path("data/raw/table.parquet")
FILES = ("contract.yaml", "decisions.yaml", "dvc.yaml", "prefect.yaml", ".dvcignore", ".gitignore")
SMALL: dict[str, Any] = {
    "data": {"raw": str(RAW), "until": None},
    "train": {"hist_gradient_boosting": {"max_iter": 15}, "baseline_rows": 500},
    "evaluate": {"min_slice_rows": 20},
    "gates": {
        "min_score": -1.0,
        "min_skill_score": 0.0,
        "min_gain_over_linear": -1.0,
        "min_slice_score": 0.0,
        "max_slice_drop": None,
        "max_calibration_error": 1.0,
    },
    "monitor": {},
}


def make(path: Path, n_rows: int = 2000) -> Path:
    """Make a project folder under git, with a raw table only."""
    path.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(ROOT / name, path / name)
    shutil.copytree(ROOT / "src", path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (path / ".dvc").mkdir()
    shutil.copyfile(ROOT / ".dvc" / "config", path / ".dvc" / "config")
    # A local remote: a test must not reach the real one.
    (path / ".dvc" / "config.local").write_text("['remote \"storage\"']\n    url = ../.dvc-storage\n")
    contract = Contract.load(ROOT / paths.CONTRACT)
    days = 20 if contract.time else None
    by = "time" if contract.time else "hash"
    set_params(path, {**SMALL, "split": {"by": by, "validation_days": days, "test_days": days, "group": None}})
    write_raw(path, rows.make_table(contract, n_rows))
    git(path, "init", "--quiet")
    commit(path, "Start")
    return path


def copy(project: Path, to: Path, history: bool = False) -> Path:
    """Copy a project, as if it were moved; with Prefect's database if `history`."""
    shutil.copytree(project, to, symlinks=True, ignore=None if history else shutil.ignore_patterns("prefect"))
    return to


def set_params(path: Path, changes: Mapping[str, Any]) -> None:
    """Change params.yaml, group by group."""
    source = path / paths.PARAMS if (path / paths.PARAMS).is_file() else ROOT / paths.PARAMS
    content = yaml.safe_load(source.read_text())
    (path / paths.PARAMS).write_text(yaml.safe_dump(_merge(content, changes)))


def write_raw(path: Path, table: pl.DataFrame) -> None:
    """Write the raw table."""
    (path / RAW).parent.mkdir(parents=True, exist_ok=True)
    tables.write(table, path / RAW)


def git(path: Path, *words: str) -> str:
    """Run git with an identity; returns what it printed."""
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, cwd=path, check=True, capture_output=True, text=True).stdout


def commit(path: Path, message: str) -> None:
    """Commit everything that git does not ignore."""
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", message)


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment with a separate home, without settings of this machine or of CI."""
    outside = ("ML_", "PREFECT_", "MLFLOW_", "DVC_", "CI", "GITHUB_", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **inherited,
        "HOME": str(home),
        "MPLCONFIGDIR": str(matplotlib.get_cachedir()),  # Building the font cache again takes seconds.
        "PATH": path,
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "COLUMNS": "200",
        **more,
        "PYTHONPATH": os.pathsep.join(filter(None, (more.get("PYTHONPATH"), str(ROOT / "src")))),
    }


def start(path: Path, *words: str, stdin: int = subprocess.DEVNULL, **more: str) -> subprocess.Popen[str]:
    """Start Python in a project; `words` is the command line, `more` extends the environment."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=path,
        env=environment(path.parent, **more),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """As `start`, but wait for the end."""
    process = start(path, *words, stdin=subprocess.DEVNULL, **more)
    output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def cli(path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run this project's command line."""
    return run(path, "-m", PACKAGE, *words, **more)


class PipelineRuns(NamedTuple):
    """The results of a run that was killed in a stage, of the next run, and of the run after that."""

    path: Path
    killed: int
    servers_left: list[int]
    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    places: set[str]


def run_pipeline(path: Path) -> PipelineRuns:
    """Make a project at `path` and run its pipeline three times; the first run is killed."""
    make(path)
    log = path.parent / "places"
    audited = {"PYTHONPATH": str(AUDIT_HOOK), "AUDIT_LOG": str(log)}
    with start(path, "-m", PACKAGE, "run", stdin=subprocess.DEVNULL, **audited) as process:
        while process.poll() is None and not (path / paths.REPORTS / "validation.json").exists():
            time.sleep(0.01)
        started = children(process.pid)
        process.kill()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in started if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    first, again = cli(path, "run", **audited), cli(path, "run", **audited)
    return PipelineRuns(path, process.returncode, left, first, again, set(log.read_text().split()))


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def leftovers(path: Path) -> list[str]:
    """Return half-written files and folders anywhere in a project."""
    return [str(found) for pattern in (".*.part", ".*.old") for found in path.rglob(pattern)]


def _merge(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        merged[key] = _merge(content.get(key) or {}, value) if isinstance(value, Mapping) else value
    return merged
