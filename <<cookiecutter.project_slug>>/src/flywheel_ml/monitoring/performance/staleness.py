"""Measures how models of different ages lose quality on newer rows."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import MonitorParams
from flywheel_ml.data import tables
from flywheel_ml.monitoring.performance.intervals import compute_deciding_interval
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError

MAX_WINDOWS = 120
_CHUNK_ROWS = 50_000


class AgedWindow(config_model.StrictModel):
    """The labelled rows of one period that are newer than a version's own data.

    `age_days` is the mean time from the newest row that the version saw to these rows. Value and interval of the
    deciding metric are None if there are fewer than `min_labels` rows.
    """

    start: datetime
    end: datetime
    rows: int
    age_days: float
    value: float | None = None
    low: float | None = None
    high: float | None = None


class AgedVersion(config_model.StrictModel):
    """A registered version, the newest row that it saw, its test metric, and its quality on newer rows."""

    version: str
    role: str
    estimator: str
    last_row_at: datetime
    tested: float | None
    windows: tuple[AgedWindow, ...]


class Staleness(config_model.StrictModel):
    """Quality over age of all usable versions; `skipped` says why others are missing."""

    at: datetime
    name: str
    metric: str
    days: int
    confidence: float
    versions: tuple[AgedVersion, ...]
    skipped: dict[str, str]


def find_last_row(bundle: Bundle, recorded: str | None) -> datetime | None:
    """Return the time of the newest row that a bundle was trained or tested on, on the time column's own clock.

    Args:
        bundle: the bundle; the profile of its test rows has the latest time, if time is an input.
        recorded: what the version's lineage says; None in versions of older packages.
    """
    if recorded:
        return datetime.fromisoformat(recorded)
    time = bundle.contract.time
    counts = bundle.profile.columns.get(time.name) if time else None
    if counts is None or counts.kind != "numeric" or not counts.present:
        return None
    return datetime.fromtimestamp(counts.edges[-1], tz=UTC).replace(tzinfo=None)


def cut_periods(first: datetime, last: datetime, days: int) -> list[tuple[datetime, datetime]]:
    """Divide the time from `first` to `last` into periods of equal length; the last may reach beyond.

    Raises:
        ConfigError: there would be more than 120.
    """
    step = timedelta(days=days)
    count = int((last - first) / step) + 1
    if count > MAX_WINDOWS:
        raise ConfigError(f"--days is {days}, which gives {count:,} windows; at most {MAX_WINDOWS} are drawn")
    return [(first + at * step, first + (at + 1) * step) for at in range(count)]


def measure_windows(
    bundle: Bundle,
    table: pl.DataFrame,
    last_row_at: datetime,
    periods: Sequence[tuple[datetime, datetime]],
    params: MonitorParams,
) -> tuple[AgedWindow, ...]:
    """Measure a bundle on the rows of each period that are newer than its own data.

    Args:
        bundle: the model.
        table: labelled rows of the contract's columns, with times.
        last_row_at: time of the newest row that the bundle saw.
        periods: start (inclusive) and end (exclusive) of each.
        params: smallest number of labels, and the confidence level.

    Raises:
        DataError: the table lacks a column of the bundle, or has another type.
    """
    contract = bundle.contract
    assert contract.time is not None
    for column in (*contract.inputs, contract.target):
        if column.name not in table.columns:
            raise DataError(f"it needs the column '{column.name}', which the table no longer has")
        if table.schema[column.name] != tables.DTYPES[column.type]:
            raise DataError(f"its column '{column.name}' is {column.type}, the table's {table.schema[column.name]}")
    time, found = pl.col(contract.time.name), []
    for start, end in periods:
        rows = table.filter((time >= start) & (time < end) & (time > last_row_at))
        if rows.is_empty():
            continue
        ages = (rows[contract.time.name] - last_row_at).dt.total_seconds()
        metric = None
        if rows.height >= params.min_labels:
            truth = tables.encode_target(rows, contract)
            output = np.concatenate(
                [
                    bundle.predict(tables.to_columns(chunk, contract.inputs)).output
                    for chunk in rows.iter_slices(_CHUNK_ROWS)
                ]
            )
            known = ~np.isnan(truth)  # Older versions may not know a class of newer rows.
            metric = compute_deciding_interval(contract.task, truth[known], output[known], params.confidence_level)
        age = float(np.mean(ages.to_numpy())) / 86_400
        found.append(
            AgedWindow(
                start=start,
                end=end,
                rows=rows.height,
                age_days=age,
                value=metric and metric.value,
                low=metric and metric.low,
                high=metric and metric.high,
            )
        )
    return tuple(found)
