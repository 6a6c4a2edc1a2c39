"""What a table's size costs: seconds and peak memory of adopt and of every stage, from 10⁴ rows on, decade by decade.

    make growth            10⁴ to 10⁶ rows
    make growth MOST=7     to 10⁷

Each step is a process of its own, as in `make run`; the growth is the seconds beside those of a tenth of the rows, so
10 is linear, and less where the start of the process still counts. Results are printed and written to
build/growth.json. Nothing of this project is changed: each size has a copy of it, made and removed here.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from flywheel_ml.cli.stages import STAGES
from flywheel_ml.utils.files import write_json
from target import PACKAGE

LEAST = 4
OUTPUT = Path("build/growth.json")
LEFT_OUT = (".git", ".venv", ".uv", "build", "var", "data", "model", "bundle", "reports", "mlflow.db", "mlartifacts")
console = Console(highlight=False)


class Cost(NamedTuple):
    """What one step took; `peak_mb` is the largest resident memory of its process."""

    step: str
    rows: int
    seconds: float
    peak_mb: float


def main() -> None:
    """Measure every size, print as it goes, write all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=6, choices=range(LEAST, 9), help="the last power of ten")
    most = parser.parse_args().most
    found: list[Cost] = []
    for power in range(LEAST, most + 1):
        with tempfile.TemporaryDirectory() as folder:
            found += measure(10**power, Path(folder))
        show(found, 10**power)
    write_json(OUTPUT, {"costs": [cost._asdict() for cost in found]})
    console.print(f"[dim]written to {OUTPUT}[/]")


def measure(rows: int, folder: Path) -> list[Cost]:
    """Adopt a table of that many rows and run the stages."""
    project, table = folder / "project", folder / "sales.parquet"
    shutil.copytree(Path.cwd(), project, ignore=shutil.ignore_patterns(*LEFT_OUT, "*_cache", "__pycache__"))
    make(rows).write_parquet(table)
    shutil.copytree(Path("src"), project / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    adopt = [PACKAGE, "adopt", str(table), "--target", "returned", "--yes", "--force"]
    steps = {"adopt": adopt, **{name: [PACKAGE, "stage", name] for name in STAGES}}
    return [Cost(step, rows, *run(project, words)) for step, words in steps.items()]


def run(project: Path, words: list[str]) -> tuple[float, float]:
    """Seconds and peak memory of a module run in a project, as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_WAIT_POLICY": "PASSIVE"}
    said = project.parent / "said.txt"
    start = time.perf_counter()
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(words)}: exit status {process.returncode}: {said.read_text()[-500:]}")
    # Linux counts in KB, macOS in bytes.
    return time.perf_counter() - start, usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def make(rows: int) -> pl.DataFrame:
    """Twelve columns of every kind: numbers with and without gaps, categories, a moment, a flag, an id, a text."""
    rng = np.random.default_rng(0)
    amount, items = rng.gamma(2.0, 50.0, rows), rng.integers(1, 20, rows)
    city = rng.choice([f"city {at}" for at in range(80)], rows)
    gaps = rng.random(rows) < 0.1
    chance = 1 / (1 + np.exp(-(amount / 100 - 1 + (items > 15) - (city < "city 3"))))
    start = np.datetime64("2023-01-01T00:00:00", "us")
    return pl.DataFrame(
        {
            "order_id": np.arange(rows),
            "placed": start + np.sort(rng.integers(0, 365 * 86_400, rows)).astype("timedelta64[s]"),
            "amount": amount,
            "items": items,
            "weight": pl.Series(np.where(gaps, np.nan, rng.normal(5, 2, rows))).fill_nan(None),
            "discount": rng.random(rows).round(2),
            "rating": rng.integers(1, 6, rows),
            "city": city,
            "channel": rng.choice(["web", "shop", "phone"], rows),
            "gift": rng.random(rows) < 0.2,
            "note": pl.Series(rng.integers(0, rows, rows)).cast(pl.String) + " as agreed on the phone",
            "returned": rng.random(rows) < chance,
        }
    )


def show(found: list[Cost], rows: int) -> None:
    """Print the costs of one size, beside those of a tenth of it."""
    before = {cost.step: cost for cost in found if cost.rows == rows // 10}
    table = Table(f"{rows:,} rows", "seconds", "growth", "peak MB", box=None, header_style="bold")
    for cost in found:
        if cost.rows == rows:
            growth = f"×{cost.seconds / before[cost.step].seconds:.1f}" if cost.step in before else "–"
            table.add_row(cost.step, f"{cost.seconds:.1f}", growth, f"{cost.peak_mb:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
