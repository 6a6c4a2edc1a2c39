"""Measures what other models cost the champion's clients: latency while models are swapped, and with a slow challenger.

    make bench                                        # after `make run`
    python tests/benchmarks/run.py --project FOLDER swap -- --rounds 5 --seconds 4

Every round measures each situation once, at 32 connections. The results are ratios of medians over the rounds, printed
and written to build/bench/swap.json. If a request fails, there are no results.

swaps: two versions of the champion's bundle alternate every half a second; compared with the same server left alone.
slow challenger: a model that takes twice its timeout and one core answers the keys of a fifth of the clients. They wait
until the timeout and the champion's answer. The clients of the champion are measured and should see no difference. A
breaker would end the experiment after some calls, so the benchmark restarts it every half a second.
"""

import argparse
import json
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.bundle import Bundle, Manifest
from flywheel_ml.core.serving_folder import BundleRef, Challenger
from flywheel_ml.serving.schema.request_schema import Schema
from flywheel_ml.utils.files import sha256_file
from results import console, print_table, run, save
from serving import MANY, OUTPUT, Case, Figures, Running, measure_load, open_champion, start_server, write_request
from target import PACKAGE

CONNECTIONS, OTHERS = 32, 6
"""Number of all clients, and of those that the challenger answers."""
EVERY = 0.5
SHARE = 0.2
MINE, THEIRS = b"mine", b"theirs"
STEADY, SWAPS, ALONE, BESIDE = "left alone", "swaps", "no challenger", "slow challenger"
PROMISED = {SWAPS: 3.0, BESIDE: 1.1}
"""Largest allowed ratio to the p99 of the line before."""


class BenchServer(NamedTuple):
    """A serving folder with the versions `first`, `second` and `slow`, its server, and requests by key."""

    folder: Path
    refs: dict[str, BundleRef]
    server: Running
    requests: dict[bytes, Path]
    seen: set[str]
    """Versions that answered, and challengers that were loaded."""

    def point(self, champion: str, challenger: Challenger | None = None) -> None:
        """Write the routing."""
        now, ref = datetime.now(UTC).isoformat(), self.refs[champion]
        serving_folder.write_routing(
            self.folder,
            serving_folder.Routing(
                name="bench", champion=ref, challengers=(challenger,) if challenger else (), updated_at=now
            ),
        )

    def model(self) -> dict[str, Any]:
        """Return what the server says about its models."""
        answer: dict[str, Any] = json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}/model"))
        tried = answer["challenger"]
        self.seen.update([answer["version"], *([tried["version"]] if tried and tried["state"] != "rejected" else [])])
        return answer


def main() -> None:
    """Measure, print and save."""
    options = _options()
    with ExitStack() as stack:
        site = stack.enter_context(_site(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        console.print(f"{options.rounds} rounds of {options.seconds:g} s; {os.cpu_count()} cores")
        found: dict[str, list[Figures]] = {name: [] for name in (STEADY, SWAPS, ALONE, BESIDE)}
        for _ in range(options.rounds):
            site.point("first")
            found[STEADY].append(_measure(site, MINE, CONNECTIONS, options.seconds))
            with _meanwhile(_make_swap(site)):
                found[SWAPS].append(_measure(site, MINE, CONNECTIONS, options.seconds))
            site.point("first")
            found[ALONE].append(_measure_champion(site, options.seconds))
            with _meanwhile(_make_restart(site)):
                found[BESIDE].append(_measure_champion(site, options.seconds))
        if site.seen != set(site.refs):
            sys.exit(f"error: of {', '.join(site.refs)} the server loaded only {', '.join(sorted(site.seen))}")
    cases = _summarize(found)
    _print(cases)
    save(OUTPUT / "swap.json", {"rounds": options.rounds, "cases": cases})


def _measure(site: BenchServer, key: bytes, connections: int, seconds: float) -> Figures:
    return measure_load(site.server, Case(key.decode(), connections, site.requests[key]), seconds)


def _measure_champion(site: BenchServer, seconds: float) -> Figures:
    """Measure the champion's clients while the challenger's clients run."""
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(_measure, site, THEIRS, OTHERS, seconds)
        mine = _measure(site, MINE, CONNECTIONS - OTHERS, seconds)
        others.result()
    return mine


@contextmanager
def _meanwhile(turn: Callable[[], None]) -> Iterator[None]:
    """Call `turn` every half a second while the block runs."""
    ended, failed = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not ended.wait(EVERY):
                turn()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    turn()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]


def _make_swap(site: BenchServer) -> Callable[[], None]:
    """Return a function that swaps the champion for the other version."""

    def turn() -> None:
        site.point("second" if site.model()["version"] == "first" else "first")

    return turn


def _make_restart(site: BenchServer) -> Callable[[], None]:
    """Return a function that restarts the experiment, so that the slow challenger gets one key and not the other."""

    def turn() -> None:
        site.model()
        while True:
            salt, now = secrets.token_hex(16), datetime.now(UTC).isoformat()
            asked = Challenger(ref=site.refs["slow"], share=SHARE, salt=salt, since=now)
            if asked.is_assigned(THEIRS) and not asked.is_assigned(MINE):
                site.point("first", asked)
                return

    return turn


@contextmanager
def _site(home: Path) -> Iterator[BenchServer]:
    _, opened = open_champion()
    folder = home / "serving"
    refs = {name: _copy(opened, folder, name) for name in ("first", "second", "slow")}
    row = Schema(opened.contract, opened.profile, MANY).example
    requests = {key: write_request(home / key.decode(), [row]) for key in (MINE, THEIRS)}
    for key, path in requests.items():
        path.write_bytes(path.read_bytes().replace(b"Host: bench", b"Host: bench\r\nX-Routing-Key: " + key, 1))
    site = BenchServer(folder, refs, Running(0, 0), requests, set())
    site.point("first")
    command = ["-m", PACKAGE, "serve", "--port", "0"]
    with start_server(command, ML_SERVING_FOLDER=str(folder), ML_PREDICTION_LOG=str(home / "log")) as running:
        yield site._replace(server=running)


def _copy(opened: Bundle, folder: Path, name: str) -> BundleRef:
    """Copy the champion's bundle under another name; `slow` gets a model that takes 0.1 s for more than one row."""
    path = folder / serving_folder.BUNDLES / name
    shutil.copytree(opened.path, path)
    if name == "slow":
        from library.helpers import faulty_models

        (path / bundle.MODEL).write_bytes(
            faulty_models.build_model(opened, "slow", safe_rows=1, turns=faulty_models.LOOP_TURNS // 10)
        )
        manifest = Manifest.model_validate_json((path / bundle.MANIFEST).read_text(), strict=False)
        bundle.write_manifest(path, manifest.model_dump(exclude={"files"}))
    return BundleRef(version=name, digest=sha256_file(path / bundle.MANIFEST))


def _summarize(found: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    for name, rounds in found.items():
        figures = {one: statistics.median(each[one] for each in rounds) for one in ("per_second", "p50_ms", "p99_ms")}
        over = figures["p99_ms"] / cases[-1]["p99_ms"] if name in PROMISED else None
        cases.append({"situation": name, **figures, "over_before": over, "promised_at_most": PROMISED.get(name)})
    return cases


def _print(cases: list[dict[str, Any]]) -> None:
    rows, missed = [], []
    for case in cases:
        over, promised = case["over_before"], case["promised_at_most"]
        rows.append(
            (
                case["situation"],
                f"{case['per_second']:,.0f}",
                f"{case['p50_ms']:.2f}",
                f"{case['p99_ms']:.2f}",
                f"{over:.2f}" if over else "",
                f"{promised:g}" if promised else "",
            )
        )
        missed.append(bool(over and over > promised))
    print_table(("", "requests/s", "p50 ms", "p99 ms", "p99 over", "at most"), rows, missed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what other models cost the champion's clients.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
