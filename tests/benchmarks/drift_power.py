"""Measures the error rates of the drift check: false alarms on clean windows, and missed shifts.

    python tests/benchmarks/run.py drift_power -- [--windows 1000] [--only ties] [--plot FILE] [--json FILE]

Draws 39 kinds of tables (see `tests/library/helpers/drift_cases.py`), counts them as monitoring does, and compares.
Every window has its own reference, so the figures are averages over both. A tenth of the windows is also read from 24
hourly profiles, merged, and packed and unpacked; every figure of the result must equal that of the rows. A thousand
windows take about an hour of processor time. The exit status is 1 if a target is missed or a result differs.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy import stats

from flywheel_ml.utils.files import replacing
from library.helpers.drift_cases import CASES, Case, compare_hours, compare_rows, draw
from rate_plot import PlottedRate, draw_rates
from results import console, print_table, save

CONFIDENCE = 0.95
PROFILED_EVERY = 10
"""Windows for each one that is also read from hourly profiles."""
SEEDS = 1000
"""Seeds of each case, so that a window of a smaller study is one of the large study."""


class Examined(NamedTuple):
    """Whether a window is called drift, and whether its profiles were read, and gave another result than its rows."""

    is_drift: bool
    is_profiled: bool
    differs: bool


class Measured(NamedTuple):
    """The result of one case."""

    case: Case
    windows: int
    found: int
    profiled: int
    differing: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.found / self.windows

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the rate."""
        low, high = stats.binomtest(self.found, self.windows).proportion_ci(CONFIDENCE, method="wilson")
        return float(low), float(high)

    @property
    def is_missed(self) -> bool:
        return self.differing > 0 or self.case.target.is_missed(self.found, self.windows)

    @property
    def note(self) -> str:
        """What a rate on the wrong side of its target means."""
        if self.differing:
            return f"{self.differing} of {self.profiled} windows differ when read from profiles"
        if self.case.target.is_met(self.found, self.windows):
            return ""
        chance = self.case.target.explain_by_chance(self.found, self.windows)
        verdict = "missed" if self.is_missed else "at the edge of the target"
        return f"{verdict}; as many by chance with p = {chance:.2g} if the rate equals it"


def main() -> int:
    """Measure the cases, print and write them; returns 1 if a target is missed."""
    options = parse_options()
    measured = measure([case for case in CASES if options.only in ("", case.kind)], options.windows)
    if options.plot:
        with replacing(options.plot) as path:
            path.write_text(plot(measured, options.windows), encoding="utf-8")
    if options.markdown:
        with replacing(options.markdown) as path:
            path.write_text(write_markdown(measured), encoding="utf-8")
    if options.json:
        save(options.json, {"windows": options.windows, "cases": [describe(one) for one in measured]})
    missed = [one for one in measured if one.is_missed]
    console.print(
        f"{len(measured)} kinds of {options.windows:,} windows; {sum(one.profiled for one in measured):,} windows read "
        f"from profiles as well; {len(missed)} targets missed"
    )
    return int(bool(missed))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=SEEDS, help="windows of each kind")
    parser.add_argument("--only", default="", choices=sorted({case.kind for case in CASES}), help="kinds of this group")
    parser.add_argument("--plot", type=Path, help="draw the rates to this SVG file")
    parser.add_argument("--markdown", type=Path, help="write the table of docs/monitoring-methods.md to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.windows < 1:
        parser.error(f"--windows is {options.windows}; it must be at least 1")
    return options


def measure(cases: Sequence[Case], windows: int) -> list[Measured]:
    """Measure the cases and print each with its group."""
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn()
    measured: list[Measured] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=windows * len(cases))
        for at, case in enumerate(cases):
            progress.update(task, description=f"{case.kind}: {case.name}")
            start, place = time.perf_counter(), CASES.index(case)
            seeds = range(place * max(SEEDS, windows), place * max(SEEDS, windows) + windows)
            found = []
            for one in pool.map(examine, repeat(case, windows), seeds, chunksize=10):
                found.append(one)
                progress.advance(task)
            is_drift, is_profiled, differs = map(sum, zip(*found, strict=True))
            measured.append(Measured(case, windows, is_drift, is_profiled, differs, time.perf_counter() - start))
            if at + 1 == len(cases) or cases[at + 1].kind != case.kind:
                print_group([one for one in measured if one.case.kind == case.kind])
    return measured


def examine(case: Case, seed: int) -> Examined:
    """Compare one window, and where wanted its profiles."""
    drawn = draw(case, seed)
    found = compare_rows(drawn)
    is_profiled = case.hourly or seed % PROFILED_EVERY == 0
    of_hours = list(compare_hours(drawn)) if is_profiled else []
    # A case of profiles reports what they gave.
    verdict = (of_hours[-1] if case.hourly else found).verdict
    return Examined(verdict == "drift", is_profiled, any(one != found for one in of_hours))


def print_group(measured: Sequence[Measured]) -> None:
    """Print the cases of one group."""
    heads = (measured[0].case.kind, "rows", "target", "called drift", "seconds")
    rows = [
        (one.case.name, describe_sizes(one.case), str(one.case.target), f"{one.rate:.1%}", f"{one.seconds:.0f}")
        for one in measured
    ]
    print_table(heads, rows, [one.is_missed for one in measured])
    for one in measured:
        if one.note:
            console.print(f"[dim]{one.case.name}: {one.note}[/]")


def describe_sizes(case: Case) -> str:
    """Describe the rows of reference and window."""
    return f"{case.reference:,} against {case.window:,}"


def describe(one: Measured) -> dict[str, object]:
    """Convert a result to JSON."""
    return {
        "kind": one.case.kind,
        "case": one.case.name,
        "reference": one.case.reference,
        "window": one.case.window,
        "target": one.case.target._asdict(),
        "called_drift": one.found,
        "rate": one.rate,
        "interval": list(one.interval),
        "missed": one.is_missed,
        "read_from_profiles": one.profiled,
        "differing": one.differing,
        "seconds": one.seconds,
    }


def write_markdown(measured: Iterable[Measured]) -> str:
    """Write the results as a Markdown table."""
    lines = ["| Case | Reference, window | Target | Called drift |", "| --- | --- | --- | ---: |"]
    kind = ""
    for one in measured:
        if one.case.kind != kind:
            kind = one.case.kind
            lines.append(f"| **{kind}** | | | |")
        lines.append(f"| {one.case.name} | {describe_sizes(one.case)} | {one.case.target} | {one.rate:.1%} |")
    return "\n".join(lines) + "\n"


def plot(measured: Iterable[Measured], windows: int) -> str:
    """Draw the rates: false alarms in one panel, shifts that matter in the other."""
    panels: dict[str, list[PlottedRate]] = {"at most": [], "at least": []}
    for one in measured:
        panels[one.case.target.bound].append(
            PlottedRate(one.case.kind, one.case.name, one.rate, *one.interval, one.case.target.rate, one.is_missed)
        )
    note = f"{windows:,} windows of each case; 95% intervals; a mark at each target"
    heads = {"No alarm wanted: called drift": panels["at most"], "Shifts to find: called drift": panels["at least"]}
    return draw_rates({head: rates for head, rates in heads.items() if rates}, note)


if __name__ == "__main__":
    sys.exit(main())
