"""Measures how fast the API answers, compared with a FastAPI endpoint that does nothing.

    make bench PROJECT=FOLDER
    python tests/benchmarks/run.py --project FOLDER serving -- --rounds 7 --seconds 2 --mlflow

Every round measures each pair of server and number of connections once. The results are ratios of medians over the
rounds, because the speed of the machine varies. The load generator runs in its own process. Results are printed and
written to build/bench/serving.json and serving.png.

`rows` is the number of rows per request; several rows are drawn from the test split. `CPU µs` is the CPU time of all
processes of the server per request. `over` is the ratio of throughput to a baseline: the no-op endpoint; JSON with the
same rows, for Arrow; one worker, for two workers with several rows, because the clients of single rows need a core
themselves; mlflow's own server, for ours. `want` is the target of this project.
"""

import argparse
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

from flywheel_ml.cli.verbs import ENVIRONMENT
from flywheel_ml.core import paths, serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import columns_from_rows
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.prediction_log import blocks
from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.schema.request_schema import Schema
from results import console, print_table, run, save
from target import PACKAGE, PROJECT

HERE = Path(__file__).parent
OUTPUT = Path("build/bench")
CONNECTIONS = (1, 8, 32, 64)
MANY, SOME = 1000, 240
AS_COLUMNS = "as columns"
"""Ends the name of a request in Arrow."""
NOOP, NORMAL, FULL, UNLOGGED, TWO, MLFLOW = (
    "no-op FastAPI",
    "ours",
    "ours, FULL",
    "ours, log off",
    "ours, 2 workers",
    "mlflow",
)
TARGETS = {NORMAL: (0.6, 1.2, 1.7, 2.0), FULL: (0.45, 0.95, 1.4, 1.8)}
"""Requests a second over the no-op's that this project promises, by number of connections."""
OVER_MLFLOW = 150.0
"""The same of ours over `mlflow models serve` at 32 connections."""
START_SECONDS = 90.0
OVER_JSON = 3.0
"""The same for many rows in Arrow over as many in JSON."""
OVER_ONE = 1.7
"""The same for two workers over one."""


class Case(NamedTuple):
    """A case to measure: a server, a number of connections, one request and its rows."""

    server: str
    connections: int
    request: Path
    rows: int = 1


class Running(NamedTuple):
    """A server's port and process id."""

    port: int
    pid: int


Figures = dict[str, float]


def main() -> None:
    """Measure, print and save."""
    options = _options()
    ref, bundle = open_champion()
    row = Schema(bundle.contract, bundle.profile, MANY).example
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = _test_rows(bundle, MANY)
        one, many = write_request(home / "one", [row]), write_request(home / "many", rows)
        some = [
            write_request(home / "some", rows[:SOME]),
            _write_arrow_request(home / f"some {AS_COLUMNS}", bundle, rows[:SOME]),
        ]
        columns = _write_arrow_request(home / f"many {AS_COLUMNS}", bundle, rows)
        servers = {
            NOOP: stack.enter_context(start_server([str(HERE / "noop.py"), str(bundle.path)])),
            NORMAL: stack.enter_context(_start_project(home / "normal")),
            FULL: stack.enter_context(_start_project(home / "full", ML_LOG_SYNCHRONOUS="FULL")),
            UNLOGGED: stack.enter_context(start_server([str(HERE / "unlogged.py")])),
            TWO: stack.enter_context(_start_project(home / "two", workers=2)),
        }
        cases = [Case(name, count, one) for count in CONNECTIONS for name in (NOOP, NORMAL, FULL, UNLOGGED)]
        cases += [Case(TWO, count, one) for count in CONNECTIONS[2:]]
        cases += [Case(name, 32, request, SOME) for request in some for name in (NORMAL, TWO)]
        cases += [Case(NORMAL, count, request, MANY) for count in (1, 2) for request in (many, columns)]
        if options.mlflow:
            servers[MLFLOW] = stack.enter_context(_start_mlflow(bundle, home))
            cases.append(Case(MLFLOW, 32, write_request(home / "mlflow", [row], "/invocations", "dataframe_records")))
        console.print(f"{len(cases)} cases, {options.rounds} rounds of {options.seconds:g} s; {os.cpu_count()} cores")
        found = measure(cases, servers, options.rounds, options.seconds)
    baselines = {
        **{case: Case(NOOP, case.connections, one) for case in cases if case.request == one},
        **{case: case._replace(request=many) for case in cases if case.request == columns},
        **{case: case._replace(server=NORMAL) for case in cases if case.server == TWO and case.rows == SOME},
    }
    summaries = [_summarize(case, found, baselines.get(case)) for case in cases]
    _print(summaries)
    _plot(summaries)
    content = {"model": ref.version, "rounds": options.rounds, "cases": summaries}
    save(OUTPUT / "serving.json", content, "serving.png")


def measure(
    cases: Sequence[Case], servers: Mapping[str, Running], rounds: int, seconds: float
) -> dict[Case, list[Figures]]:
    """Measure each case once per round, after a warm-up round."""
    found: dict[Case, list[Figures]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for case in cases:
            figures = measure_load(servers[case.server], case, seconds if turn else 0.3)
            if turn:
                found[case].append(figures)
    return found


def measure_load(server: Running, case: Case, seconds: float) -> Figures:
    """Measure a case for a time; exits if a request fails."""
    command = [
        sys.executable,
        str(HERE / "load.py"),
        str(server.port),
        str(case.connections),
        str(seconds),
        str(case.request),
    ]
    before = _cpu_seconds(server.pid)
    figures: Figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    figures["cpu_us"] = (_cpu_seconds(server.pid) - before) / figures["answers"] * 1e6
    if figures["failures"]:
        sys.exit(f"error: {figures['failures']} requests failed: {case.server} at {case.connections} connections")
    return figures


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children so far; NaN without /proc.

    On a busy machine it is more reliable than wall time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_seconds, map(int, children)))


def _summarize(case: Case, found: Mapping[Case, list[Figures]], baseline: Case | None) -> dict[str, Any]:
    figures, is_arrow = found[case], case.request.name.endswith(AS_COLUMNS)
    over: float | None = None
    promised: float | None
    if case.server == MLFLOW:
        ours = next(
            rounds for other, rounds in found.items() if (other.server, other.connections) == (NORMAL, case.connections)
        )
        over, promised = _median(ours, "per_second") / _median(figures, "per_second"), OVER_MLFLOW
    elif case.rows > 1:
        promised = OVER_ONE if case.server == TWO else OVER_JSON
    else:
        promised = dict(zip(CONNECTIONS, TARGETS.get(case.server, ()), strict=False)).get(case.connections)
    if baseline is not None:
        over = _median(figures, "per_second") / _median(found[baseline], "per_second")
    return {
        "server": f"{case.server}, Arrow" if is_arrow else case.server,
        "connections": case.connections,
        "rows": case.rows,
        "requests_per_second": _median(figures, "per_second"),
        "p50_ms": _median(figures, "p50_ms"),
        "p99_ms": _median(figures, "p99_ms"),
        "cpu_us": _median(figures, "cpu_us"),
        "over_baseline": over,
        "promised": promised if over else None,
    }


def _median(figures: list[Figures], name: str) -> float:
    return statistics.median(figure[name] for figure in figures)


def _print(cases: Sequence[Mapping[str, Any]]) -> None:
    heads = ("server", "clients", "rows", "rows/s", "p50 ms", "p99 ms", "CPU µs", "over", "want")
    rows, missed = [], []
    for case in cases:
        ratio, promised = case["over_baseline"], case["promised"]
        rows.append(
            (
                case["server"],
                str(case["connections"]),
                f"{case['rows']:,}",
                f"{case['requests_per_second'] * case['rows']:,.0f}",
                f"{case['p50_ms']:.2f}",
                f"{case['p99_ms']:.2f}",
                f"{case['cpu_us']:.0f}",
                f"{ratio:.2f}" if ratio else "",
                f"{promised:g}" if promised else "",
            )
        )
        missed.append(bool(promised and ratio < promised))
    print_table(heads, rows, missed, pad_edge=False, collapse_padding=True)


def _plot(cases: Sequence[Mapping[str, Any]]) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (speed, tail) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in (NOOP, NORMAL, FULL, UNLOGGED):
        lines = [case for case in cases if case["server"] == name and case["rows"] == 1]
        speed.plot(
            [case["connections"] for case in lines], [case["requests_per_second"] for case in lines], "o-", label=name
        )
        tail.plot([case["connections"] for case in lines], [case["p99_ms"] for case in lines], "o-", label=name)
    for axes, title in ((speed, "requests a second"), (tail, "p99, milliseconds")):
        axes.set(xscale="log", xlabel="connections", title=title, ylim=(0, None), xticks=CONNECTIONS)
        axes.set_xticks(CONNECTIONS, [str(count) for count in CONNECTIONS])
        axes.minorticks_off()
    speed.legend()
    figure.savefig(OUTPUT / "serving.png", dpi=120)


def open_champion() -> tuple[serving_folder.BundleRef, Bundle]:
    """Return the champion's bundle and its reference in the serving folder."""
    folder = Settings().serving_folder
    ref = serving_folder.read_routing(folder).champion
    if ref is None:
        sys.exit("error: no champion to serve; run `make run`")
    return ref, Bundle.open(serving_folder.bundle_folder(folder, ref), ref.digest, PROJECT.features)


def _test_rows(bundle: Bundle, count: int) -> list[dict[str, Any]]:
    """Draw rows of the test split with repetition, as JSON values; they vary like those of real clients."""
    frame = tables.read(paths.SPLITS["test"], bundle.contract)
    drawn = frame.select(column.name for column in bundle.contract.inputs).sample(count, with_replacement=True, seed=0)
    return blocks.to_json_rows(drawn.to_arrow())


def write_request(
    path: Path, rows: Sequence[Mapping[str, Any]], route: str = "/predict", field: str = "instances"
) -> Path:
    """Write one HTTP request with rows, as `load.py` sends it."""
    body = json.dumps({field: rows}).encode()
    head = (
        f"POST {route} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    path.write_bytes(head.encode() + body)
    return path


def _write_arrow_request(path: Path, bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow as pa

    columns = columns_from_rows(bundle.contract.inputs, rows)
    body = blocks.pack_table(pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()}))
    kinds = f"Content-Type: {ARROW}\r\nAccept: {ARROW}"
    path.write_bytes(
        f"POST /predict HTTP/1.1\r\nHost: bench\r\n{kinds}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    return path


@contextmanager
def _start_project(log: Path, workers: int = 1, **settings: str) -> Iterator[Running]:
    command = ["-m", PACKAGE, "serve", "--port", "0", "--workers", str(workers)]
    with start_server(command, ML_PREDICTION_LOG=str(log), **settings) as running:
        yield running


@contextmanager
def start_server(arguments: Sequence[str], **settings: str) -> Iterator[Running]:
    """Start a server that prints its address, with Python's arguments and extra environment variables."""
    environ = {**os.environ, "ML_DRAIN_SECONDS": "0", **settings}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, *arguments], env=environ, **pipes) as process:
        try:
            found = re.search(r"http://\S+?:(\d+)", process.stdout.readline() if process.stdout else "")
            if found is None:
                sys.exit(f"error: {' '.join(arguments)} did not start")
            yield Running(int(found[1]), process.pid)
        finally:
            process.terminate()


@contextmanager
def _start_mlflow(bundle: Bundle, home: Path) -> Iterator[Running]:
    """`mlflow models serve` on the same bundle, one worker; it takes half a minute to start."""
    os.environ.update(ENVIRONMENT)
    import mlflow

    from flywheel_ml.model.registration import pyfunc
    from flywheel_ml.model.registration.registry import build_load_script

    script = home / "script.py"
    script.write_text(build_load_script(PROJECT), encoding="utf-8")
    with warnings.catch_warnings():
        # MLflow would rather infer the signature from an example; ours comes from the contract.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            home / "model",
            python_model=str(script),
            artifacts={"bundle": str(bundle.path)},
            signature=pyfunc.build_signature(bundle.contract),
            pip_requirements=[],
        )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    where = ["--model-uri", str(home / "model"), "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "models", "serve", *where, "--env-manager", "local", "--workers", "1"]
    # It looks for uvicorn on the path.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = home / "mlflow.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environ, stdout=output, stderr=output, start_new_session=True) as process,
    ):
        try:
            _wait_for_server(f"http://127.0.0.1:{port}/ping", process, log)
            yield Running(port, process.pid)
        finally:
            # It starts its own server process, which is not a child of this one.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def _wait_for_server(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1).read()
        except OSError:
            time.sleep(0.2)
        else:
            return
    sys.exit(f"error: mlflow's server did not start: {log.read_text()[-500:]}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the API against a FastAPI endpoint that does nothing.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of each measurement")
    parser.add_argument("--mlflow", action="store_true", help="measure `mlflow models serve` too")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
