"""Measures batch scoring against ONNX Runtime alone, and the server's start against its imports alone.

    make bench PROJECT=FOLDER

Each figure has a baseline, measured alternately in the same run. The ratios are comparable between machines, the
seconds are not. Results are printed and written to build/bench/bench.json. Needs a champion (`make run`).
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import bundles, scoring
from results import console, print_table, run, save
from target import PACKAGE, PROJECT

ROUNDS = 5
ROWS = 300_000
OUTPUT = Path("build/bench/bench.json")
NOTE = f"""batch scoring: {ROWS:,} rows, file to file, one thread per core. Baseline: ONNX Runtime alone, one thread,
as every bundle runs it, on the same rows in memory.
server start: until the first answer. Baseline: the imports of its libraries alone."""
BARE = "import fastapi, numpy, onnxruntime, pydantic_settings, sqlalchemy, structlog, uvicorn"


def main() -> None:
    """Measure both pairs, print and save them."""
    console.print(f"{ROUNDS} rounds, each measures every line once; medians. {os.cpu_count()} cores.")
    scored, alone = measure_batch()
    start, bare = measure_cold_start()
    rows = [
        ("batch scoring", f"{scored:,.0f} rows/s", f"{alone:,.0f} rows/s", f"{scored / alone:.2f}"),
        ("server start", f"{start:.2f} s", f"{bare:.2f} s", f"{start / bare:.2f}"),
    ]
    print_table(("measured", "here", "baseline", "ratio"), rows)
    console.print(NOTE, style="dim")
    content = {
        "batch": {"rows": ROWS, "rows_per_second": scored, "onnxruntime_rows_per_second": alone},
        "cold_start": {"seconds": start, "import_seconds": bare},
    }
    save(OUTPUT, content)


def measure_batch() -> tuple[float, float]:
    """Return rows per second of scoring a Parquet file, and of the ONNX session on the same encoded rows."""
    settings, params = Settings(prediction_log=tempfile.mkdtemp()), Params.load(paths.PARAMS)
    _, opened = bundles.open_champion(PROJECT, settings)
    raw = tables.read(params.data.raw, Contract.load(paths.CONTRACT))
    rows = pl.concat([raw] * (ROWS // raw.height + 1)).head(ROWS)
    inputs = opened.encode(tables.to_columns(rows, opened.contract.inputs))
    size = params.score.chunk_rows
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
        tables.write(rows, source)

        def alone() -> None:
            for at in range(0, ROWS, size):
                opened.run(type(inputs)(inputs.num[at : at + size], inputs.cat[at : at + size]))

        ours, baseline = alternate(lambda: scoring.score(PROJECT, source, output, settings, params.score), alone)
    return ROWS / ours, ROWS / baseline


def measure_cold_start() -> tuple[float, float]:
    """Return seconds from the start of the server's process to its first prediction, and of its imports alone."""
    return alternate(_start_and_predict, lambda: subprocess.run([sys.executable, "-c", BARE], check=True))


def alternate(ours: Callable[[], object], baseline: Callable[[], object]) -> tuple[float, float]:
    """Return median seconds of both, run alternately in every round after a warm-up round."""
    ours(), baseline()
    rounds = [(_time(ours), _time(baseline)) for _ in range(ROUNDS)]
    first, second = zip(*rounds, strict=True)
    return statistics.median(first), statistics.median(second)


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _start_and_predict() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "ML_PREDICTION_LOG": folder, "ML_DRAIN_SECONDS": "0"}
        command = [sys.executable, "-m", PACKAGE, "serve", "--port", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **pipes, text=True, env=environ) as server:  # type: ignore[call-overload]
            assert server.stdout is not None
            found = re.search(r"http://\S+?:\d+", server.stdout.readline())
            if found is None:
                sys.exit("the server did not start; is there a champion? (make run)")
            _predict(found[0])
            server.terminate()


def _predict(address: str) -> None:
    body = json.dumps({"instances": [_read_first_row()]}).encode()
    request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


@cache
def _read_first_row() -> dict[str, object]:
    contract = Contract.load(paths.CONTRACT)
    frame = pl.read_parquet(paths.SPLITS["test"]).head(1).select(column.name for column in contract.inputs)
    row: dict[str, object] = json.loads(frame.write_json())[0]
    return row


if __name__ == "__main__":
    run(main)
