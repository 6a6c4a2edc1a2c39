"""What other models cost the champion's callers: the tail while models are swapped, and beside a slow challenger.

    make bench                                        # after `make run`
    python tests/benchmarks/run.py --project FOLDER swap -- --rounds 5 --seconds 4

Every round measures each situation once, at 32 connections; what counts are ratios of medians over the rounds. Results
are printed and written to build/bench/swap.json. If a request fails, there are none.

swaps: two versions of the champion's bundle take turns, every half a second; beside the same server left alone.
slow challenger: a model that takes twice as long as it may, and one core for it, answers the keys of a fifth of the
clients. They wait until it is given up on and the champion has answered; the champion's own clients, who are measured,
should not notice. A breaker would end that after some calls, so the experiment is begun anew every half a second.
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

from rich.console import Console
from rich.table import Table

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.bundle import Bundle, Manifest
from flywheel_ml.core.serving_folder import BundleRef, Challenger
from flywheel_ml.serving.schema.request_schema import Schema
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import sha256_file, write_json
from serving import MANY, OUTPUT, Case, Figures, Running, champion, loaded, request_file, started
from target import PACKAGE

CONNECTIONS, OTHERS = 32, 6
"""Of all clients, and of those whose key the challenger takes."""
EVERY = 0.5
SHARE = 0.2
MINE, THEIRS = b"mine", b"theirs"
STEADY, SWAPS, ALONE, BESIDE = "left alone", "swaps", "no challenger", "slow challenger"
PROMISED = {SWAPS: 3.0, BESIDE: 1.1}
"""Most times the p99 of the line before."""


class Site(NamedTuple):
    """A serving folder with the versions `first`, `second` and `slow`, its server, and requests by key."""

    folder: Path
    refs: dict[str, BundleRef]
    server: Running
    requests: dict[bytes, Path]
    seen: set[str]
    """Versions that answered, and those that were tried."""

    def point(self, champion: str, challenger: Challenger | None = None) -> None:
        """Name who answers."""
        now, ref = datetime.now(UTC).isoformat(), self.refs[champion]
        serving_folder.write_routing(
            self.folder, serving_folder.Routing(name="bench", champion=ref, challenger=challenger, updated_at=now)
        )

    def model(self) -> dict[str, Any]:
        """What answers now."""
        told: dict[str, Any] = json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}/model"))
        tried = told["challenger"]
        self.seen.update([told["version"], *([tried["version"]] if tried and tried["state"] != "refused" else [])])
        return told


def main() -> None:
    """Measure, print, write."""
    options = _options()
    console = Console(highlight=False)
    with ExitStack() as stack:
        site = stack.enter_context(_site(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        console.print(f"{options.rounds} rounds of {options.seconds:g} s; {os.cpu_count()} cores")
        found: dict[str, list[Figures]] = {name: [] for name in (STEADY, SWAPS, ALONE, BESIDE)}
        for _ in range(options.rounds):
            site.point("first")
            found[STEADY].append(_crowd(site, MINE, CONNECTIONS, options.seconds))
            with _meanwhile(_swapping(site)):
                found[SWAPS].append(_crowd(site, MINE, CONNECTIONS, options.seconds))
            site.point("first")
            found[ALONE].append(_two_crowds(site, options.seconds))
            with _meanwhile(_trying(site)):
                found[BESIDE].append(_two_crowds(site, options.seconds))
        if site.seen != set(site.refs):
            sys.exit(f"error: of {', '.join(site.refs)} the server took only {', '.join(sorted(site.seen))}")
    told = _told(found)
    _print(console, told)
    write_json(OUTPUT / "swap.json", {"rounds": options.rounds, "cases": told})
    console.print(f"[dim]written to {OUTPUT}/swap.json[/]")


def _crowd(site: Site, key: bytes, connections: int, seconds: float) -> Figures:
    return loaded(site.server, Case(key.decode(), connections, site.requests[key]), seconds)


def _two_crowds(site: Site, seconds: float) -> Figures:
    """What the champion's clients experience beside the challenger's."""
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(_crowd, site, THEIRS, OTHERS, seconds)
        mine = _crowd(site, MINE, CONNECTIONS - OTHERS, seconds)
        others.result()
    return mine


@contextmanager
def _meanwhile(turn: Callable[[], None]) -> Iterator[None]:
    """Take a turn every half a second while the block runs."""
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


def _swapping(site: Site) -> Callable[[], None]:
    """Each turn puts the other version in the place of the one that answers."""

    def turn() -> None:
        site.point("second" if site.model()["version"] == "first" else "first")

    return turn


def _trying(site: Site) -> Callable[[], None]:
    """Each turn begins an experiment with the slow challenger, which takes the one key and not the other."""

    def turn() -> None:
        site.model()
        while True:
            salt, now = secrets.token_hex(16), datetime.now(UTC).isoformat()
            asked = Challenger(ref=site.refs["slow"], share=SHARE, salt=salt, since=now)
            if asked.takes(THEIRS) and not asked.takes(MINE):
                site.point("first", asked)
                return

    return turn


@contextmanager
def _site(home: Path) -> Iterator[Site]:
    _, opened = champion()
    folder = home / "serving"
    refs = {name: _copy(opened, folder, name) for name in ("first", "second", "slow")}
    row = Schema(opened.contract, opened.profile, MANY).example
    requests = {key: request_file(home / key.decode(), [row]) for key in (MINE, THEIRS)}
    for key, path in requests.items():
        path.write_bytes(path.read_bytes().replace(b"Host: bench", b"Host: bench\r\nX-Routing-Key: " + key, 1))
    site = Site(folder, refs, Running(0, 0), requests, set())
    site.point("first")
    command = ["-m", PACKAGE, "serve", "--port", "0"]
    with started(command, ML_SERVING_FOLDER=str(folder), ML_PREDICTION_LOG=str(home / "log")) as running:
        yield site._replace(server=running)


def _copy(opened: Bundle, folder: Path, name: str) -> BundleRef:
    """The champion's bundle under another name; `slow` gets a model that takes some 0.1 s for more than one row."""
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


def _told(found: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for name, rounds in found.items():
        figures = {one: statistics.median(each[one] for each in rounds) for one in ("per_second", "p50_ms", "p99_ms")}
        over = figures["p99_ms"] / told[-1]["p99_ms"] if name in PROMISED else None
        told.append({"situation": name, **figures, "over_before": over, "promised_at_most": PROMISED.get(name)})
    return told


def _print(console: Console, told: list[dict[str, Any]]) -> None:
    table = Table("", "requests/s", "p50 ms", "p99 ms", "p99 over", "at most", box=None, header_style="bold")
    for case in told:
        over, promised = case["over_before"], case["promised_at_most"]
        table.add_row(
            case["situation"],
            f"{case['per_second']:,.0f}",
            f"{case['p50_ms']:.2f}",
            f"{case['p99_ms']:.2f}",
            f"{over:.2f}" if over else "",
            f"{promised:g}" if promised else "",
            style="yellow" if over and over > promised else None,
        )
    console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what other models cost the champion's callers.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (ProjectError, OSError) as error:
        sys.exit(f"error: {error}")
