"""Measures seconds and peak memory of adopt and of every stage, from 10⁴ rows on, in powers of ten.

    make growth            10⁴ to 10⁶ rows
    make growth MOST=7     to 10⁷

Each step runs in its own process, as in `make run`. The growth is the ratio of the seconds to those of a tenth of the
rows: 10 is linear, and less if the start of the process still dominates. Results are printed and written to
build/growth.json. The project is not changed: each size uses a temporary copy of it.
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

from flywheel_ml.cli.stages import STAGES
from results import print_table, save
from target import PACKAGE

MIN_POWER = 4
OUTPUT = Path("build/growth.json")
EXCLUDED = (".git", ".venv", ".uv", "build", "var", "data", "model", "bundle", "reports", "mlflow.db", "mlartifacts")


class Cost(NamedTuple):
    """The cost of one step; `peak_mb` is the peak resident memory of its process."""

    step: str
    rows: int
    seconds: float
    peak_mb: float


def main() -> None:
    """Measure every size, print each, and save all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=6, choices=range(MIN_POWER, 9), help="the last power of ten")
    most = parser.parse_args().most
    costs: list[Cost] = []
    for power in range(MIN_POWER, most + 1):
        with tempfile.TemporaryDirectory() as folder:
            costs += measure(10**power, Path(folder))
        print_costs(costs, 10**power)
    save(OUTPUT, {"costs": [cost._asdict() for cost in costs]})


def measure(rows: int, folder: Path) -> list[Cost]:
    """Adopt a table of that many rows and run the stages."""
    project, table = folder / "project", folder / "sales.parquet"
    shutil.copytree(Path.cwd(), project, ignore=shutil.ignore_patterns(*EXCLUDED, "*_cache", "__pycache__"))
    make_table(rows).write_parquet(table)
    shutil.copytree(Path("src"), project / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    adopt = [PACKAGE, "adopt", str(table), "--target", "returned", "--yes", "--force"]
    steps = {"adopt": adopt, **{name: [PACKAGE, "stage", name] for name in STAGES}}
    return [Cost(step, rows, *run(project, words)) for step, words in steps.items()]


def run(project: Path, words: list[str]) -> tuple[float, float]:
    """Return seconds and peak memory of a module that runs in a project, in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_WAIT_POLICY": "PASSIVE"}
    log = project.parent / "log.txt"
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(words)}: exit status {process.returncode}: {log.read_text()[-500:]}")
    # Linux counts in KB, macOS in bytes.
    return time.perf_counter() - start, usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def make_table(rows: int) -> pl.DataFrame:
    """Make twelve columns: numbers with and without gaps, categories, a timestamp, a flag, an id, a text."""
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


def print_costs(costs: list[Cost], rows: int) -> None:
    """Print the costs of one size and their growth from a tenth of it."""
    before = {cost.step: cost for cost in costs if cost.rows == rows // 10}
    lines = []
    for cost in costs:
        if cost.rows == rows:
            growth = f"×{cost.seconds / before[cost.step].seconds:.1f}" if cost.step in before else "–"
            lines.append((cost.step, f"{cost.seconds:.1f}", growth, f"{cost.peak_mb:,.0f}"))
    print_table((f"{rows:,} rows", "seconds", "growth", "peak MB"), lines)


if __name__ == "__main__":
    main()
