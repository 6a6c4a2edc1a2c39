"""Profiles the server: a flame graph, and tables of time by module and by function.

    make profile                                                          # after `make run`
    python tests/benchmarks/run.py --project FOLDER flame -- --connections 32 --rows 1 --seconds 5

py-spy samples the server's stack 400 times a second while a load generator keeps it busy. The time of a library counts
where this package calls it. Written to build/profile/: flame.svg (open it in a browser), stacks.txt (the samples) and
profile.json. On Linux a process may inspect its children; macOS requires `sudo`.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from flywheel_ml.serving.schema.request_schema import Schema
from flywheel_ml.utils.files import write_json
from results import console, print_table, run
from serving import open_champion, write_request
from target import PACKAGE

HERE = Path(__file__).parent
OUTPUT = Path("build/profile")
LIBRARY = "flywheel_ml/"
RATE = 400
LOOP = "event loop and sockets"
MAX_FUNCTIONS = 15


def main() -> None:
    """Record twice, for the graph and for the tables; print and save."""
    options = _options()
    _, bundle = open_champion()
    row = Schema(bundle.contract, bundle.profile, options.rows).example
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        request = write_request(Path(folder) / "request", [row] * options.rows)
        load = [str(options.connections), str(options.seconds), str(request)]
        record("flamegraph", OUTPUT / "flame.svg", load, Path(folder))
        figures = record("raw", OUTPUT / "stacks.txt", load, Path(folder))
    # py-spy reads the memory of a running process, so that a name may be torn.
    places = count((OUTPUT / "stacks.txt").read_text(encoding="utf-8", errors="replace"))
    if not places:
        sys.exit("error: py-spy took no samples of the server; increase --seconds")
    micro = 1e6 / figures["per_second"]
    _print(places, micro)
    found = [{"module": module, "function": name, "samples": count} for (module, name), count in places.items()]
    write_json(OUTPUT / "profile.json", {**vars(options), **figures, "places": found})
    console.print(
        f"{figures['per_second']:,.0f} requests a second over {options.connections} connections, {micro:,.0f} µs each, "
        f"while being profiled\n[dim]written to {OUTPUT}/flame.svg, stacks.txt and profile.json[/]"
    )


def record(form: str, output: Path, load: list[str], home: Path) -> dict[str, float]:
    """Serve under py-spy and load; returns the figures of the load generator."""
    # Nonblocking: stopping the server for each sample would make every system call look slow.
    recording = [
        "py-spy",
        "record",
        "--nonblocking",
        "--rate",
        str(RATE),
        "--format",
        form,
        "--output",
        str(output),
        "--",
    ]
    command = [*recording, sys.executable, "-m", PACKAGE, "serve", "--port", "0"]
    environ = {**os.environ, "ML_DRAIN_SECONDS": "0", "ML_PREDICTION_LOG": str(home / form)}
    log_file = home / f"{form}.log"
    with (
        log_file.open("w") as log,
        subprocess.Popen(
            command, env=environ, start_new_session=True, stdout=subprocess.PIPE, stderr=log, text=True
        ) as spy,
    ):
        try:
            # py-spy prints first, on the same pipe.
            ports = (re.search(r"serving on http://\S+?:(\d+)", line) for line in spy.stdout or ())
            if (found := next(filter(None, ports), None)) is None:
                lines = log_file.read_text(encoding="utf-8").strip().splitlines()
                sys.exit(f"error: the server did not start under py-spy: {lines[-1] if lines else 'no output'}")
            crowd = [sys.executable, str(HERE / "load.py"), found[1], *load]
            figures: dict[str, float] = json.loads(subprocess.run(crowd, check=True, capture_output=True).stdout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(spy.pid, signal.SIGINT)
            spy.wait(timeout=60)
    if figures["failures"]:
        sys.exit(f"error: {figures['failures']:.0f} requests failed")
    return figures


def count(stacks: str) -> Counter[tuple[str, str]]:
    """Count samples by (module, function): the innermost frame of this package in each stack."""
    places: Counter[tuple[str, str]] = Counter()
    for line in stacks.splitlines():
        stack, _, times = line.rpartition(" ")
        if "(uvicorn/" not in stack and "asyncio/" not in stack:
            continue  # The startup, and other threads.
        own = [found for frame in stack.split(";") if (found := re.match(rf"(.+) \(.*?{LIBRARY}(\S+)\.py:", frame))]
        served = [(found[2].replace("/", "."), found[1]) for found in own if not found[2].endswith(("cli", "stage"))]
        place = served[-1] if served else (LOOP, "")
        places[(LOOP, "") if place[0] in ("serving.server", "serving.worker") else place] += int(times)
    return places


def _print(places: Counter[tuple[str, str]], micro: float) -> None:
    total = sum(places.values())
    modules: Counter[str] = Counter()
    for (module, _), samples in places.items():
        modules[module] += samples
    functions = [(f"{module} {name}".strip(), samples) for (module, name), samples in places.most_common(MAX_FUNCTIONS)]
    for head, found in (("module", modules.most_common()), ("function", functions)):
        rows = [(name, f"{samples / total:.0%}", f"{samples / total * micro:.1f}") for name, samples in found]
        print_table((head, "share", "µs a request"), rows)
        console.print()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=32, help="clients at once")
    parser.add_argument("--rows", type=int, default=1, help="rows of each request")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each of the two recordings")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
