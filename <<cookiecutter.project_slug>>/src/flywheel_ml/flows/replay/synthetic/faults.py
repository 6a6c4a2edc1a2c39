"""The faults of the synthetic replay, when each begins and ends, and how soon monitoring must find it; pure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from flywheel_ml.monitoring.result import Result

Damage = Callable[[pl.DataFrame, int], pl.DataFrame]
"""Damages the rows of the fault's n-th window, counted from 0."""
Sign = Callable[[Result], str]
"""Names what in a result shows the fault; empty if nothing does."""

CLEAN = 2
"""Windows without a fault before each fault, and after the last one."""


class Fault(NamedTuple):
    """A fault that lasts some windows.

    Attributes:
        name: as the report names it.
        what: what happens to the rows.
        damage: damages them.
        sign: what monitoring must report; another alarm does not count as its detection.
        windows: how long it lasts.
        limit: windows within which it must be found.
    """

    name: str
    what: str
    damage: Damage
    sign: Sign
    windows: int = 2
    limit: int = 1


class ScheduledWindow(NamedTuple):
    """A window of the stream: the episode of the fault that is active in it, if any, and its place in the episode."""

    fault: Fault | None
    episode: int
    at: int


def make_schedule(faults: Sequence[Fault]) -> list[ScheduledWindow]:
    """Put the faults one after the other, with clean windows between them."""
    found: list[ScheduledWindow] = []
    for episode, fault in enumerate(faults):
        found += [ScheduledWindow(None, -1, 0)] * CLEAN
        found += [ScheduledWindow(fault, episode, at) for at in range(fault.windows)]
    return found + [ScheduledWindow(None, -1, 0)] * CLEAN


def shift(column: str, by: float) -> Damage:
    """Shift a column by a constant."""
    return lambda rows, _: rows.with_columns(pl.col(column) + by)


def _creep(rows: pl.DataFrame, at: int) -> pl.DataFrame:
    return rows.with_columns(pl.col("pressure") + 0.15 * 12 * (at + 1))


def _to_fahrenheit(rows: pl.DataFrame, _: int) -> pl.DataFrame:
    return rows.with_columns(pl.col("temperature") * 1.8 + 32)


def _freeze(rows: pl.DataFrame, _: int) -> pl.DataFrame:
    return rows.with_columns(pl.lit(1001.3).alias("pressure"))


def _flip(rows: pl.DataFrame, _: int) -> pl.DataFrame:
    return rows.with_columns(~pl.col("fails"))


def _lose_historian(rows: pl.DataFrame, _: int) -> pl.DataFrame:
    return rows.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in ("flow", "vibration"))


def _stop(rows: pl.DataFrame, _: int) -> pl.DataFrame:
    return rows.clear()


def find_drift(column: str) -> Sign:
    """Make the sign of a drifted column."""
    return lambda result: f"drift of {column}" if column in result.drift.drifted else ""


def _find_broken_rule(result: Result) -> str:
    return next((f"{one.column} {one.rule}" for one in result.violations if one.column == "temperature"), "")


def _find_missing(result: Result) -> str:
    tests = [test for test in result.drift.comparisons if test.drifted and test.aspect == "missing"]
    return f"missing: {', '.join(sorted(test.column for test in tests))}" if len(tests) == 2 else ""


def _find_degraded(result: Result) -> str:
    return "degraded quality" if result.quality.verdict == "degraded" else ""


def _find_silence(result: Result) -> str:
    return "too few rows" if result.verdict == "insufficient data" else ""


RECURRING = Fault("recurring drift", "load 0.5 σ higher, every other window", shift("load", 5.0), find_drift("load"), 1)
FAULTS = (
    Fault("sudden drift", "temperature 0.5 σ higher", shift("temperature", 4.0), find_drift("temperature")),
    Fault("gradual drift", "pressure 0.15 σ higher in each window", _creep, find_drift("pressure"), 6, 3),
    *(RECURRING._replace(name=f"recurring drift, {turn}") for turn in ("first time", "second time", "third time")),
    Fault("unit change", "temperature in °F instead of °C", _to_fahrenheit, _find_broken_rule),
    Fault("broken sensor", "pressure stuck at one value", _freeze, find_drift("pressure")),
    Fault("label flip", "failures labelled as none, and none as failures", _flip, _find_degraded),
    Fault("upstream outage", "flow and vibration are missing", _lose_historian, _find_missing),
    Fault("traffic stops", "no rows at all", _stop, _find_silence),
)
"""In the order of the stream."""
