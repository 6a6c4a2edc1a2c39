"""Measures the error rates of the drift check: false alarms on clean windows, and missed shifts.

    python tests/benchmarks/run.py drift_power -- [--windows 1000]

Draws tables of 20 independent standard normal columns and a prediction, some with a text column of many values,
counts them as monitoring does, and compares. Every window has its own reference, so the figures are averages over both.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from flywheel_ml.core import profile
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.params import MonitorParams
from flywheel_ml.monitoring.drift import detect_drift

COLUMNS = 20
TRAINING = 70 / 15
"""Training rows for each row of the reference, which are the test rows."""


class Case(NamedTuple):
    """Reference and window sizes, the shift in standard deviations, how many columns have it, and the target.

    `values` are those of the text column (0: there is none), as frequent as words in a language; `fresh` is the share
    of the window's rows that hold a new one.
    """

    name: str
    reference: int
    window: int
    shift: float
    shifted: int
    target: str
    values: int = 0
    fresh: float = 0.0


CASES = (
    Case("no drift", 5_000, 1_000, 0.0, 0, "at most 1.8% alarms"),
    Case("0.20 σ in one column", 5_000, 1_000, 0.2, 1, "at least 90% found"),
    Case("0.25 σ in one column", 5_000, 1_000, 0.25, 1, "at least 99% found"),
    Case("0.03 σ in all columns", 50_000, 50_000, 0.03, COLUMNS, "at most 1% alarms"),
    Case("no drift, 120 texts", 450, 1_000, 0.0, 0, "at most 1.8% alarms", 120),
    Case("no drift, 800 texts", 450, 1_000, 0.0, 0, "at most 1.8% alarms", 800),
    Case("no drift, 20,000 texts", 5_000, 1_000, 0.0, 0, "at most 1.8% alarms", 20_000),
    Case("15% of a new text", 450, 1_000, 0.0, 0, "at least 99% found", 800, 0.15),
)


def build_contract(case: Case) -> Contract:
    """A contract of 20 unbounded numbers, and of the text column where there is one."""
    numbers = [Column(name=f"x{at}", type="float") for at in range(COLUMNS)]
    texts = [Column(name="text", type="string")] if case.values else []
    return Contract(name="drawn", columns=(*numbers, *texts, Column(name="y", type="boolean", role="target")))


def draw_texts(case: Case, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Values of the text column."""
    weights = 1 / np.arange(1, case.values + 1)
    return rng.choice(case.values, rows, p=weights / weights.sum()).astype(str).astype(object)


def has_alarm(case: Case, seed: int) -> bool:
    """Whether one window of the case is reported as drift."""
    rng = np.random.default_rng(seed)
    drawn = build_contract(case)
    before = {f"x{at}": rng.normal(size=case.reference) for at in range(COLUMNS)}
    after = {f"x{at}": rng.normal(case.shift * (at < case.shifted), 1, case.window) for at in range(COLUMNS)}
    training = before
    if case.values:
        training = {**before, "text": draw_texts(case, int(TRAINING * case.reference), rng)}
        before["text"], after["text"] = draw_texts(case, case.reference, rng), draw_texts(case, case.window, rng)
        after["text"][rng.random(case.window) < case.fresh] = "new"
    reference = profile.build(drawn, before, rng.random(case.reference), training=training)
    window = profile.count(reference, after, rng.random(case.window))
    return detect_drift(reference, window, MonitorParams()).verdict == "drift"


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000)
    windows = parser.parse_args().windows
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for number, case in enumerate(CASES):
            seeds = range(number * windows, (number + 1) * windows)
            found = sum(pool.map(has_alarm, [case] * windows, seeds, chunksize=20))
            sizes = f"{case.reference:,} against {case.window:,} rows"
            rate = f"{found} of {windows} windows = {found / windows:.1%}"
            print(f"{case.name:24} {sizes:32} {rate:32} ({case.target})", flush=True)


if __name__ == "__main__":
    main()
