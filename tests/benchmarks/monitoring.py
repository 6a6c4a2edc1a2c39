"""Measures seconds, processor time and peak memory of reading a window: from rows, from hourly profiles, from a file.

    python tests/benchmarks/run.py --project FOLDER monitoring -- [--rows 1000000] [--file-rows 10000000]

Builds a temporary log of labelled rows over 30 days, and a scored Parquet file, from the project's raw table and its
champion. Each step runs in its own process; its peak memory includes the imports. The targets are for the default
numbers of rows and two cores. Results are printed and written to build/bench/monitoring.json. Needs a champion
(`make run`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from flywheel_ml.core import paths
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import bundles
from flywheel_ml.flows.scoring import add_predictions
from flywheel_ml.monitoring.sources.log_window import Log, Span, read_window
from flywheel_ml.monitoring.sources.profile_store import ModelKey, ProfileStore
from flywheel_ml.monitoring.sources.profiling import update_profiles
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window
from flywheel_ml.prediction_log import Outcome, Prediction, Reader, Writer, dumps
from flywheel_ml.serving.models.output_texts import OutputTexts
from flywheel_ml.testing.rows import json_rows
from results import console, print_table, run, save
from target import PROJECT

OUTPUT = Path("build/bench/monitoring.json")
SPAN = Span(1_760_000_400_000_000, 1_760_000_400_000_000 + 30 * 24 * 3_600_000_000)
"""30 full days, so that profiles answer for all of it."""
CHUNK_ROWS = 5_000
GROUP_ROWS = 250_000
SCORED = "scored.parquet"


class Step(NamedTuple):
    """A step to measure: its title, and the largest allowed seconds and MB; 0: no target."""

    title: str
    seconds: float = 0.0
    peak_mb: float = 0.0


STEPS = {
    "rows": Step("window from labelled rows", 20),
    "profiles": Step("profiles of all hours"),
    "unlabelled": Step("window from profiles, no labels", 1),
    "labelled": Step("window from profiles, and labels from rows", 20),
    "file": Step("window from a scored Parquet file", 10, 2_000),
}


class Cost(NamedTuple):
    """The cost of one step: wall-clock and processor seconds, peak memory of its process, and rows read."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    rows: int


class Champion(NamedTuple):
    """The project's champion as log rows name it."""

    model: ModelKey
    bundle: Bundle

    @classmethod
    def open(cls) -> "Champion":
        version, bundle = bundles.open_champion(PROJECT, Settings())
        return cls(ModelKey(version, bundle.digest), bundle)

    def find(self, model: ModelKey) -> Bundle | None:
        return self.bundle if model == self.model else None


def main() -> None:
    """Build log and file, measure the steps, print and save them."""
    options = parse_options()
    if options.step:
        print(json.dumps(STEP_FUNCTIONS[options.step](options.folder, options.rows, options.file_rows)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for source in ("log", "bare log", "file"):
            console.print(f"[dim]building the {'scored file' if source == 'file' else source}[/]")
            call(f"build {source}", folder, options)
        costs = {}
        for name, step in STEPS.items():
            console.print(f"[dim]measuring: {step.title}[/]")
            seconds, cpu_seconds, peak_mb, rows = call(name, folder, options)
            costs[name] = Cost(seconds, cpu_seconds, peak_mb, int(rows))
    print_costs(costs)
    content = {step: {**cost._asdict(), "target": STEPS[step]._asdict()} for step, cost in costs.items()}
    save(OUTPUT, {"rows": options.rows, "file_rows": options.file_rows, "cores": os.cpu_count(), "steps": content})


def parse_options() -> argparse.Namespace:
    """Read the command line; `--step` and `--folder` are for the processes of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="labelled rows of the log")
    parser.add_argument("--file-rows", type=int, default=10_000_000, help="rows of the scored file")
    parser.add_argument("--step", choices=STEP_FUNCTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("rows", "file_rows"):
        if (rows := getattr(options, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} is {rows}; it must be at least 1")
    return options


def call(step: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """Run a step in its own process; returns what it printed."""
    words = ["--step", step, "--folder", str(folder), "--rows", options.rows, "--file-rows", options.file_rows]
    command = [sys.executable, str(Path(__file__)), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {step}: exit status {done.returncode}: {done.stderr[-500:]}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(read: Callable[[], int]) -> Cost:
    """Measure a function that returns the number of rows it read."""
    start, cpu = time.perf_counter(), time.process_time()
    rows = read()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    # Linux counts in KB, macOS in bytes.
    unit = 1024 if sys.platform == "linux" else 1024**2
    return Cost(seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, rows)


def read_rows(folder: Path, rows: int, file_rows: int) -> Cost:
    """Measure reading the window from rows alone."""
    champion, log = Champion.open(), Log(Reader(str(folder / "log")))
    return measure(lambda: check(read(log, champion), rows, rows))


def update_log(folder: Path, rows: int, file_rows: int) -> Cost:
    """Measure profiling all hours of the log; profiles the other log as well, unmeasured."""
    champion = Champion.open()

    def update(name: str) -> int:
        target = str(folder / name)
        update_profiles(Reader(target), ProfileStore(target), champion.find, SPAN.until_us)
        return rows

    update("bare log")
    return measure(lambda: update("log"))


def read_profiles(name: str, folder: Path, rows: int, file_rows: int) -> Cost:
    """Measure reading the window of a log that has profiles."""
    champion, target = Champion.open(), str(folder / name)
    log = Log(Reader(target), ProfileStore(target))
    return measure(lambda: check(read(log, champion), rows, rows if name == "log" else 0))


def read_file(folder: Path, rows: int, file_rows: int) -> Cost:
    """Measure reading the window from the scored file."""
    champion = Champion.open()
    return measure(lambda: check(from_file(folder / SCORED, champion.bundle), file_rows, 0))


def read(log: Log, champion: Champion) -> Window:
    """Read the champion's window with its slices."""
    return read_window(log, champion.bundle, champion.model, SPAN, Params.load(paths.PARAMS).evaluate.slices)


def check(window: Window, rows: int, labelled: int) -> int:
    """Return the number of rows; a wrong one ends the benchmark."""
    if (window.rows, len(window.truth)) != (rows, labelled):
        sys.exit(f"{window.rows} rows, {len(window.truth)} labelled; {rows} and {labelled} were expected")
    return window.rows


def read_raw(contract: Contract) -> pl.DataFrame:
    """Read the raw rows that have a label."""
    return tables.read(Params.load(paths.PARAMS).data.raw, contract).drop_nulls(contract.target.name)


def build_log(name: str, folder: Path, rows: int, file_rows: int) -> list[float]:
    """Log rows of the raw table; all have a label, or none."""
    (version, digest), bundle = Champion.open()
    contract, texts = bundle.contract, OutputTexts(bundle.contract.classes)
    frame = read_raw(contract).head(rows)
    answers = bundle.predict(tables.to_columns(frame, contract.inputs))
    inputs, outputs = [dumps(row) for row in json_rows(frame, contract)], texts.write(answers)
    scores, labels = answers.scores.tolist(), [json.dumps(label) for label in frame[contract.target.name].to_list()]
    step = (SPAN.until_us - SPAN.since_us) / rows
    with Writer(str(folder / name), "serve") as writer:
        for start in range(0, rows, CHUNK_ROWS):
            logged: list[Prediction | Outcome] = []
            for at in range(start, min(start + CHUNK_ROWS, rows)):
                row, time_us = at % frame.height, SPAN.since_us + int(at * step)
                key = f"{time_us // 1000:012x}{at:020x}"
                answer = inputs[row], outputs[row], scores[row]
                logged.append(Prediction(key, time_us, None, None, "champion", version, digest, *answer, 100, False))
                if name == "log":
                    logged.append(Outcome(key, time_us + 1000, labels[row]))
            writer.append(logged).result()
    return []


def build_file(folder: Path, rows: int, file_rows: int) -> list[float]:
    """Write a scored file without the target, in groups of rows."""
    champion = Champion.open()
    contract = champion.bundle.contract
    raw = read_raw(contract)
    answers = champion.bundle.predict(tables.to_columns(raw, contract.inputs))
    scored = add_predictions(raw, answers, contract, champion.model.version).drop(contract.target.name)
    group = pl.concat([scored] * (GROUP_ROWS // scored.height + 1)).head(GROUP_ROWS).to_arrow()
    with pq.ParquetWriter(folder / SCORED, group.schema, compression="zstd") as writer:
        for start in range(0, file_rows, GROUP_ROWS):
            writer.write_table(group.slice(0, min(GROUP_ROWS, file_rows - start)))
    return []


def print_costs(costs: dict[str, Cost]) -> None:
    """Print the costs next to their targets."""
    lines, missed = [], []
    for step, cost in costs.items():
        target = STEPS[step]
        wanted = [f"{target.seconds:g} s"] * (target.seconds > 0) + [f"{target.peak_mb:,.0f} MB"] * (target.peak_mb > 0)
        figures = f"{cost.seconds:.2f}", f"{cost.cpu_seconds:.2f}", f"{cost.peak_mb:,.0f}"
        lines.append((target.title, f"{cost.rows:,}", *figures, ", ".join(wanted) or "–"))
        missed.append(0 < target.seconds < cost.seconds or 0 < target.peak_mb < cost.peak_mb)
    print_table(("step", "rows", "seconds", "CPU s", "peak MB", "at most"), lines, missed)


STEP_FUNCTIONS: dict[str, Callable[[Path, int, int], Sequence[float]]] = {
    "build log": lambda *sizes: build_log("log", *sizes),
    "build bare log": lambda *sizes: build_log("bare log", *sizes),
    "build file": build_file,
    "rows": read_rows,
    "profiles": update_log,
    "unlabelled": lambda *sizes: read_profiles("bare log", *sizes),
    "labelled": lambda *sizes: read_profiles("log", *sizes),
    "file": read_file,
}


if __name__ == "__main__":
    run(main)
