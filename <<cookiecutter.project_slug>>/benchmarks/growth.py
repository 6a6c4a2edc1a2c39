"""How time and memory grow with rows: adopting a table, then each stage of dvc.yaml, each as a process of its own.

    make growth                    from 10,000 to 1,000,000 rows
    make growth ROWS="10000000"    ten million: minutes, and a few gigabytes

The tables are made here: numbers, categories, a boolean and a moment, with gaps, and two classes to tell apart. All
happens in a copy of the project, which goes again. Results are printed and written to build/growth.json.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from << cookiecutter.package_name >> import stage
from << cookiecutter.package_name >>.cli import ENVIRONMENT
from << cookiecutter.package_name >>.errors import ProjectError
from << cookiecutter.package_name >>.files import write_json

ROOT = Path(__file__).parent.parent
OUTPUT = Path("build/growth.json")
ROWS = (10_000, 100_000, 1_000_000)
PIECE = 500_000
ADOPT = "adopt"
MAXRSS = 1 if sys.platform == "darwin" else 1024
"""What `ru_maxrss` counts in: bytes there, KiB elsewhere."""


class Cost(NamedTuple):
    """What one process took; memory is the peak of its own."""

    seconds: float
    mebibytes: float


def main() -> None:
    """Measure each number of rows that the command line names."""
    console = Console(highlight=False)
    sizes = [int(word.replace("_", "").replace(",", "")) for word in sys.argv[1:]] or list(ROWS)
    costs: dict[int, dict[str, Cost]] = {}
    for rows in sizes:
        with console.status(f"{rows:,} rows"), tempfile.TemporaryDirectory() as scratch:
            costs[rows] = measure(rows, Path(scratch))
    console.print(shown(costs))
    console.print("growth: seconds of all steps, beside the step before; 10.0× the rows cost 10.0× when it is linear.")
    write_json(
        OUTPUT, {str(rows): {name: cost._asdict() for name, cost in found.items()} for rows, found in costs.items()}
    )
    console.print(f"[dim]written to {OUTPUT}[/]")


def measure(rows: int, scratch: Path) -> dict[str, Cost]:
    """What adopting a table of `rows` rows, and each stage after it, cost.

    Raises:
        ProjectError: a step failed.
    """
    table, project = scratch / "growth.parquet", scratch / "project"
    with pq.ParquetWriter(table, piece(1, 0).to_arrow().schema) as writer:
        for at in range(0, rows, PIECE):
            writer.write_table(piece(min(PIECE, rows - at), at).to_arrow())
    copy(project)
    adopt = ["-m", f"{stage.__package__}.cli", ADOPT, str(table), "--target", "answer", "--yes", "--force"]
    return {name: run(command, project) for name, command in ((ADOPT, adopt), *commands(project))}


def copy(project: Path) -> None:
    """The files of this project that git knows or would know, elsewhere."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for path in map(Path, filter(None, listed.split("\0"))):
        if (ROOT / path).is_file():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, project / path)


def commands(project: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of each stage, as dvc.yaml has them: `python -m …`."""
    graph = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))
    for name, described in graph["stages"].items():
        yield name, str(described["cmd"]).split()[1:]


def run(command: list[str], project: Path) -> Cost:
    """Run Python on a command line to its end.

    Raises:
        ProjectError: it failed.
    """
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(project / "src")}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *command], cwd=project, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise ProjectError(f"`{' '.join(command[:3])}` failed: {log.read().decode(errors='replace')[-500:]}")
    return Cost(seconds, usage.ru_maxrss * MAXRSS / 2**20)


def piece(rows: int, seed: int) -> pl.DataFrame:
    """Rows of the table, drawn anew for each seed."""
    rng = np.random.default_rng(seed)
    numbers = {f"number {at}": rng.normal(at, 1 + at, rows) for at in range(6)}
    places = rng.integers(0, 100, rows)
    kinds = rng.integers(0, 4, rows)
    signal = numbers["number 0"] + numbers["number 1"] * (kinds == 1) + 0.02 * places + rng.normal(0, 1, rows)
    gaps = rng.random(rows) < 0.05
    return pl.DataFrame(
        {
            "moment": np.datetime64("2023-01-01T00:00:00", "us")
            + rng.integers(0, 700 * 86_400, rows) * np.timedelta64(1, "s"),
            **numbers,
            "count": rng.poisson(3, rows),
            "place": np.char.add("place ", places.astype(str)),
            "kind": np.array(["low", "middle", "high", "other"])[kinds],
            "member": rng.random(rows) < 0.4,
            "answer": np.where(signal > 1, "yes", "no"),
        }
    ).with_columns(pl.when(~pl.Series(gaps)).then(pl.col("number 3")))


def shown(costs: dict[int, dict[str, Cost]]) -> Table:
    """Seconds and peak memory of each step, a column for each number of rows."""
    table = Table("step", *(f"{rows:,} rows" for rows in costs), box=None, header_style="bold")
    for name in next(iter(costs.values())):
        table.add_row(
            name, *(f"{found[name].seconds:7.1f} s  {found[name].mebibytes:6,.0f} MiB" for found in costs.values())
        )
    totals = [sum(cost.seconds for cost in found.values()) for found in costs.values()]
    peaks = [max(cost.mebibytes for cost in found.values()) for found in costs.values()]
    table.add_row("all", *(f"{total:7.1f} s  {peak:6,.0f} MiB" for total, peak in zip(totals, peaks, strict=True)))
    grown = [f"{after / before:.1f}×" for before, after in itertools.pairwise(totals)]
    table.add_row("growth", "", *grown)
    return table


if __name__ == "__main__":
    try:
        main()
    except ProjectError as error:
        stage.fail(error)
