"""Measures how much a running server slows down while its log is pruned, exported and erased.

    python tests/benchmarks/run.py --project FOLDER retention -- --rounds 3 --seconds 4 --rows 200000

A server with one worker answers 32 connections. Its log begins with old rows, some of one entity. Each round measures
a job against the same server left alone before and after it, on a log of its own. The results are medians of these
ratios, printed and written to build/bench/retention.json. The job must last as long as the load, so that the whole
time is covered. `want` is the target of this project.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flywheel_ml.prediction_log import Outcome, Prediction, Row, Writer, dumps, now_us
from flywheel_ml.serving.schema.request_schema import Schema
from results import console, print_table, run, save
from serving import MANY, NORMAL, OUTPUT, Case, measure_load, open_champion, start_server, write_request
from target import PACKAGE

CONNECTIONS = 32
WANTED = 0.90
START_SECONDS = 3.0
"""The imports of a job are no part of it."""
DAY_US = 86_400_000_000
KEY = "erased-customer"
JOBS = ("prune", "export", "erase")
JOB = """
import sys
from datetime import timedelta
from pathlib import Path
from flywheel_ml.flows.retention import lower_priority
from flywheel_ml.prediction_log.retention import erase, export, prune
from flywheel_ml.prediction_log.retention.log import Log

kind, folder = sys.argv[1:]
log = Log(folder, Path(folder).parent / "spool", Path(folder).parent / "exports")
lower_priority()
if kind == "prune":
    prune.prune(log, timedelta(days=7))
elif kind == "export":
    export.export(log, lambda *_: None)
else:
    erase.erase(log, "erased-customer")
"""


class Ratios(NamedTuple):
    """Requests a second, milliseconds at the 99th percentile, and CPU time of the server a request: of alone."""

    throughput: float
    p99: float
    cpu: float


def main() -> None:
    """Measure, print and save."""
    options = read_options()
    _, bundle = open_champion()
    row = Schema(bundle.contract, bundle.profile, MANY).example
    found: dict[str, list[Ratios]] = {name: [] for name in JOBS}
    console.print(f"{options.rounds} rounds of {options.seconds:g} s a line; {os.cpu_count()} cores")
    for _ in range(options.rounds):
        for name in JOBS:
            with tempfile.TemporaryDirectory() as scratch:
                found[name].append(measure_job(name, Path(scratch), row, options))
    figures = {
        name: {field: statistics.median(getattr(one, field) for one in found[name]) for field in Ratios._fields}
        for name in JOBS
    }
    print_table(
        ("during", "requests/s, of alone", "want", "p99, of alone", "CPU a request, of alone"),
        [
            (name, f"{one['throughput']:.3f}", f"{WANTED:.2f}", f"{one['p99']:.2f}", f"{one['cpu']:.3f}")
            for name, one in figures.items()
        ],
        [one["throughput"] < WANTED for one in figures.values()],
    )
    rounds = {name: [one._asdict() for one in found[name]] for name in JOBS}
    save(OUTPUT / "retention.json", {"rounds": rounds, "medians": figures})


def measure_job(name: str, scratch: Path, row: Mapping[str, Any], options: argparse.Namespace) -> Ratios:
    """Return the figures during a job over the mean of before and after."""
    folder = scratch / "log"
    fill(folder, options.rows)
    case = Case(NORMAL, CONNECTIONS, write_request(scratch / "request", [row]))
    command = ["-m", PACKAGE, "serve", "--port", "0"]
    with start_server(command, ML_PREDICTION_LOG=str(folder)) as server:
        measure_load(server, case, 1)
        before = measure_load(server, case, options.seconds)
        with subprocess.Popen([sys.executable, "-c", JOB, name, str(folder)]) as job:
            time.sleep(START_SECONDS)
            during = measure_load(server, case, options.seconds)
            if job.poll() is not None:
                sys.exit(f"error: {name} ended with status {job.returncode} before the load; give more --rows")
            job.kill()
        for request in (folder / ".requests").glob("*.json"):
            request.unlink(missing_ok=True)  # Or the server would continue.
        time.sleep(1)
        after = measure_load(server, case, options.seconds)
    ratios = [2 * during[name] / (before[name] + after[name]) for name in ("per_second", "p99_ms", "cpu_us")]
    return Ratios(*ratios)


def fill(folder: Path, rows: int) -> None:
    """Write old predictions with labels; a fifth of them are of the entity that is erased."""
    timestamp_us = now_us() - 30 * DAY_US
    inputs, output = dumps({f"column{at}": 1.25 for at in range(20)}), dumps({"prediction": True})
    with Writer(str(folder), "serve") as writer:
        for at in range(0, rows, 10_000):
            some: list[Row] = []
            for number in range(at, min(at + 10_000, rows)):
                when = timestamp_us + number * 1000
                name = f"{when // 1000:012x}{number:020x}"
                entity = KEY if number % 5 == 0 else f"customer-{number}"
                model = ("champion", "1", None)
                some.append(Prediction(name, when, entity, None, *model, inputs, output, 0.5, 900, False))
                some.append(Outcome(name, when, "true"))
            writer.append(some).result(60)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure a server while its log is pruned, exported and erased.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement")
    parser.add_argument("--rows", type=int, default=400_000, help="old rows of the log")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
