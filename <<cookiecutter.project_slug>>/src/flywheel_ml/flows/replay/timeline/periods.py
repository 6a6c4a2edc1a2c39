"""Divides the time of a table into periods, and each period into parts; pure."""

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import polars as pl

from flywheel_ml.utils import formatting

MIN_MONTHS, MAX_MONTHS = 4, 18
EQUAL_PERIODS = 12


class Period(NamedTuple):
    """A span of a table's time, start ≤ time < end; the label names the month, or the start."""

    label: str
    start: datetime
    end: datetime


def cut_periods(first: datetime, last: datetime) -> list[Period]:
    """Divide the time from the first to the last row: by calendar month if there are 4 to 18, else into 12 equal parts.

    Args:
        first: time of the first row.
        last: time of the last row, later than the first.
    """
    months = list(itertools.islice(_list_months(first, last), MAX_MONTHS + 1))
    if MIN_MONTHS <= len(months) <= MAX_MONTHS:
        return months
    step = (last - first) / EQUAL_PERIODS
    edges = [first + at * step for at in range(EQUAL_PERIODS)]
    # The last row lies in the last period, which is open at its end.
    ends = [*edges[1:], pl.Series([last]).dt.offset_by("1us")[0]]
    label = formatting.day if step >= timedelta(days=1) else formatting.minute
    return [Period(label(start), start, end) for start, end in zip(edges, ends, strict=True)]


def cut_parts(periods: Sequence[Period], parts: int) -> list[datetime]:
    """Divide each period into equal parts; returns the start of each part, and the end of the last."""
    starts = [period.start + at * (period.end - period.start) / parts for period in periods for at in range(parts)]
    return [*starts, periods[-1].end]


def _list_months(first: datetime, last: datetime) -> Iterator[Period]:
    start = first.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while start <= last:
        end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
        yield Period(f"{start:%b %Y}", start, end)
        start = end
