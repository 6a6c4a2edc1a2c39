"""Measures a log: rows, span, bytes, growth, and when the disk will be full."""

from typing import Any, NamedTuple

import sqlalchemy as sa

from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.operations import RULES
from flywheel_ml.prediction_log.rows import blocks, now_us, predictions
from flywheel_ml.prediction_log.selection import HOUR_US

DAY_US = 24 * HOUR_US
RECENT_DAYS = 7
"""Growth is measured over the last days."""


class LogStats(NamedTuple):
    """Statistics of a log.

    Attributes:
        files: number of SQLite files; 0 for a database.
        rows: table → rows; `block rows` counts the predictions inside blocks.
        first_us: timestamp of the first prediction; None in an empty log.
        last_us: timestamp of the last prediction.
        size: bytes on disk.
        used: bytes that hold rows; the rest is reused.
        growth: bytes a day over the last days; None below an hour of data.
        limit: bytes that the log may take, by the settings or by the disk; None if unknown.
        limited_by: `setting` or `disk`.
        days_left: days until the limit at that growth; None without growth or limit.
    """

    files: int
    rows: dict[str, int]
    first_us: int | None
    last_us: int | None
    size: int
    used: int
    growth: float | None
    limit: int | None
    limited_by: str
    days_left: float | None


def compute_stats(log: Log, max_size: int | None = None) -> LogStats:
    """Measure a log; `max_size` is the configured limit in bytes.

    Raises:
        ProjectError: the log does not exist.
    """
    log.require()
    reader = log.readers()[0]
    rows = {name: _sum(reader.select_all(rule.table, _count)) for name, rule in RULES.items()}
    rows["block rows"] = _sum(reader.select_all(blocks, lambda table: sa.select(sa.func.sum(table.c.rows))))
    spans = [span for table in (predictions, blocks) for span in reader.select_all(table, _span) if span[0] is not None]
    first, last = min((one for one, _ in spans), default=None), max((one for _, one in spans), default=None)
    size, used = log.measure()
    growth = _compute_growth(reader.count_by_hour(), used, first)
    free = log.measure_free()
    limit, limited_by = (None, "") if free is None else (size + free, "disk")
    if max_size is not None and (limit is None or max_size < limit):
        limit, limited_by = max_size, "setting"
    days_left = max(limit - used, 0) / growth if limit is not None and growth else None
    return LogStats(log.count_files(), rows, first, last, size, used, growth, limit, limited_by, days_left)


def _compute_growth(hours: list[tuple[int, int, int]], used: int, first_us: int | None) -> float | None:
    """Return bytes a day: the recent share of rows and packed bytes, over the recent days that have data."""
    now = now_us()
    if first_us is None or now - first_us < HOUR_US:
        return None
    since = max(now - RECENT_DAYS * DAY_US, first_us)
    packed, rows = sum(one for *_, one in hours), sum(count for _, count, one in hours if not one) or 1
    per_row = max(used - packed, 0) / rows
    recent = sum(one or count * per_row for hour, count, one in hours if hour >= since // HOUR_US)
    return recent / ((now - since) / DAY_US)


def _count(table: sa.FromClause) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(table)


def _span(table: sa.FromClause) -> sa.Select[Any]:
    return sa.select(sa.func.min(table.c.timestamp_us), sa.func.max(table.c.timestamp_us))


def _sum(found: list[Any]) -> int:
    return sum(count or 0 for (count,) in found)
