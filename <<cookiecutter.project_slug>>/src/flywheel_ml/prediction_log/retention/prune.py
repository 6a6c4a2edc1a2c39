"""Deletes the oldest rows of a log, by age or down to a size."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log.retention import requests
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.operations import LABEL_TABLES, RULES, Operation, merge
from flywheel_ml.prediction_log.retention.scan import IDS_PER_REQUEST, split
from flywheel_ml.prediction_log.rows import blocks, now_us, predictions
from flywheel_ml.prediction_log.selection import HOUR_US
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.units import parse_duration, parse_size

FILLED_SHARE = 0.95
"""Share of the wanted size to which a log is pruned: pages are not quite full afterwards."""

Profiles = Callable[[str, int], int]
"""Brings the profiles of a log (its folder or URL) up to a timestamp in microseconds; returns the rows before it that
belong to an hour without a profile."""


class PruneResult(NamedTuple):
    """What was deleted, or would be.

    Attributes:
        until_us: rows before it; 0 if nothing had to be pruned.
        first_us: the first row of the log before; None if it was empty.
        counts: table → deleted rows; for a dry run the rows that would be.
        unprofiled: rows of hours without a profile; None if no profiles are kept.
        bytes_before: size of the rows; `bytes_after` likewise.
        failures: file → why it was not pruned.
    """

    until_us: int
    first_us: int | None
    counts: dict[str, int]
    unprofiled: int | None
    bytes_before: int
    bytes_after: int
    failures: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return self._asdict()


class Limits(NamedTuple):
    """What a log may keep: rows up to an age, and bytes; None for no limit."""

    age: timedelta | None
    size: int | None


def read_limits(settings: Settings, age: str = "", size: str = "") -> Limits:
    """Parse an age and a size; the settings apply if both are empty.

    Raises:
        ConfigError: one is malformed, or the settings have none either.
    """
    names = ("AGE", "SIZE") if age or size else ("ML_LOG_MAX_AGE", "ML_LOG_MAX_SIZE")
    if not age and not size:
        age, size = settings.log_max_age, settings.log_max_size
    if not age and not size:
        raise ConfigError("give AGE=90d or SIZE=10GB, or set ML_LOG_MAX_AGE or ML_LOG_MAX_SIZE")
    return Limits(parse_duration(age, names[0]) if age else None, parse_size(size, names[1]) if size else None)


def prune(
    log: Log,
    age: timedelta | None = None,
    size: int | None = None,
    profiles: Profiles | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> PruneResult:
    """Delete the rows that are older than an age, or the oldest ones until the rest fits a size.

    Labels leave with their predictions; the records of batch jobs stay. A rerun completes an interrupted one.

    Args:
        log: the log.
        age: rows of an earlier time are deleted.
        size: bytes that the remaining rows may take.
        profiles: brings profiles up to date first, because they outlive the rows.
        force: also delete rows of hours without a profile.
        dry_run: only count the rows.

    Raises:
        ProjectError: the log does not exist, or rows have no profile.
        Busy: another job is running.
    """
    log.require()
    with requests.hold_job_lock(log.folder):
        first_us, before = find_first(log), log.measure()[1]
        until_us = max(_find_hour(age) if age else 0, find_cut(log, size) if size else 0)
        if first_us is None or until_us <= first_us:
            if not dry_run:
                _delete_orphans(log, until_us)
            return PruneResult(0, first_us, {}, None, before, before, {})
        unprofiled = None if profiles is None or dry_run else profiles(log.target, until_us)
        if unprofiled and not force:
            raise ProjectError(
                f"{unprofiled:,} rows belong to hours without a profile, and monitoring would lose them; "
                "run `make monitor`, or pass FORCE=1 (--force) to delete them anyway"
            )
        if dry_run:
            return PruneResult(until_us, first_us, _count_before(log, until_us), None, before, before, {})
        counts, failures = log.change(Operation(kind="prune", until_us=until_us))
        more, failed = _delete_orphans(log, until_us)
        after = log.measure()[1]
        return PruneResult(until_us, first_us, merge(counts, more), unprofiled, before, after, {**failed, **failures})


def _find_hour(age: timedelta) -> int:
    """Return the full hour at which to cut, because profiles are of full hours."""
    return (now_us() - age // timedelta(microseconds=1)) // HOUR_US * HOUR_US


def find_first(log: Log) -> int | None:
    """Return the timestamp of the first row; None if there is none."""
    found = [
        value
        for reader in log.readers()[:1]
        for table in (predictions, blocks)
        for (value,) in reader.select_all(table, lambda one: sa.select(sa.func.min(one.c.timestamp_us)))
        if value is not None
    ]
    return min(found, default=None)


def find_cut(log: Log, size: int) -> int:
    """Return the full hour at which to cut so that the remaining rows take at most `size` bytes; 0 if all fit."""
    used = log.measure()[1]
    if used <= size:
        return 0
    hours = log.readers()[0].count_by_hour()
    packed = sum(one for _, _, one in hours)
    rows = sum(count for _, count, one in hours if not one) or 1
    per_row = max(used - packed, 0) / rows
    excess = used - size * FILLED_SHARE
    for hour, count, one in hours:
        excess -= one or count * per_row
        if excess <= 0:
            return (hour + 1) * HOUR_US
    return (hours[-1][0] + 1) * HOUR_US if hours else 0


def _delete_orphans(log: Log, until_us: int) -> tuple[dict[str, int], dict[str, str]]:
    """Delete old labels whose predictions are gone; they may be in another file."""
    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name in LABEL_TABLES if until_us else ():
        found = [one for orphans in log.readers()[0].find_orphans(RULES[name].table, until_us) for one in orphans]
        for some in split(found, IDS_PER_REQUEST):
            deleted, failed = log.change(Operation(kind="delete", ids={name: list(some)}))
            counts, failures = merge(counts, deleted), {**failures, **failed}
    return counts, failures


def _count_before(log: Log, until_us: int) -> dict[str, int]:
    def query(table: sa.FromClause) -> sa.Select[Any]:
        return sa.select(sa.func.count()).select_from(table).where(table.c.timestamp_us < until_us)

    reader = log.readers()[0]
    return {
        table.name: count
        for table in (predictions, blocks)
        if (count := sum(found for (found,) in reader.select_all(table, query)))
    }
