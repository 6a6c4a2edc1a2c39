"""How fast it is here: batch scoring beside ONNX Runtime alone, and the server's start beside its bare imports.

    make bench PROJECT=FOLDER

Each figure stands beside a baseline measured in turn with it, in the same run; the ratios travel between
machines, the seconds do not. Results are printed and written to build/bench/bench.json. Needs a champion (`make run`).
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
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import scoring
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import write_json
from target import PACKAGE, PROJECT

ROUNDS = 5
ROWS = 300_000
OUTPUT = Path("build/bench/bench.json")
NOTE = f"""batch scoring: {ROWS:,} rows, file to file, a thread for each core; beside ONNX Runtime alone, one thread,
as every bundle runs it, on the same rows ready in memory.
server start: from nothing to the first answer; beside the imports of its libraries alone."""
BARE = "import fastapi, numpy, onnxruntime, pydantic_settings, sqlalchemy, structlog, uvicorn"


def main() -> None:
    """Measure both pairs, print and write them."""
    console = Console(highlight=False)
    console.print(f"{ROUNDS} rounds, each measures every row once; medians. {os.cpu_count()} cores.")
    scored, alone = batch()
    start, bare = cold_start()
    table = Table("measured", "here", "baseline", "ratio", box=None, header_style="bold")
    table.add_row("batch scoring", f"{scored:,.0f} rows/s", f"{alone:,.0f} rows/s", f"{scored / alone:.2f}")
    table.add_row("server start", f"{start:.2f} s", f"{bare:.2f} s", f"{start / bare:.2f}")
    console.print(table)
    console.print(NOTE, style="dim")
    found = {
        "batch": {"rows": ROWS, "rows_per_second": scored, "onnxruntime_rows_per_second": alone},
        "cold_start": {"seconds": start, "import_seconds": bare},
    }
    write_json(OUTPUT, found)
    console.print(f"[dim]written to {OUTPUT}[/]")


def batch() -> tuple[float, float]:
    """Rows a second: of scoring a Parquet file into another, and of the ONNX session on the same rows, ready-made."""
    settings, params = Settings(prediction_log=tempfile.mkdtemp()), Params.load(paths.PARAMS)
    _, opened = scoring.open_champion(PROJECT, settings)
    raw = tables.read(params.data.raw, Contract.load(paths.CONTRACT))
    rows = pl.concat([raw] * (ROWS // raw.height + 1)).head(ROWS)
    inputs = Featurizer(opened.contract).encode(tables.to_columns(rows, opened.contract.inputs))
    size = params.score.chunk_rows
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
        tables.write(rows, source)

        def alone() -> None:
            for at in range(0, ROWS, size):
                opened.run(type(inputs)(inputs.num[at : at + size], inputs.cat[at : at + size]))

        ours, baseline = in_turn(lambda: scoring.score(PROJECT, source, output, settings, params.score), alone)
    return ROWS / ours, ROWS / baseline


def cold_start() -> tuple[float, float]:
    """Seconds from starting the server's process to its first prediction, and of importing its libraries alone."""
    return in_turn(_first_answer, lambda: subprocess.run([sys.executable, "-c", BARE], check=True))


def in_turn(ours: Callable[[], object], baseline: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, run one after the other in every round, after a round that does not count."""
    ours(), baseline()
    rounds = [(_seconds(ours), _seconds(baseline)) for _ in range(ROUNDS)]
    first, second = zip(*rounds, strict=True)
    return statistics.median(first), statistics.median(second)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _first_answer() -> None:
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
    body = json.dumps({"instances": [_INSTANCE]}).encode()
    request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def _first_row() -> dict[str, object]:
    contract = Contract.load(paths.CONTRACT)
    frame = pl.read_parquet(paths.SPLITS["test"]).head(1).select(column.name for column in contract.inputs)
    row: dict[str, object] = json.loads(frame.write_json())[0]
    return row


if __name__ == "__main__":
    try:
        _INSTANCE = _first_row()
        main()
    except (ProjectError, OSError) as error:
        sys.exit(f"error: {error}")
