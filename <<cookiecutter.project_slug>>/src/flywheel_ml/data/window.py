"""Exports a time span of the raw table to a file, for example a month to score."""

from datetime import datetime
from pathlib import Path

import polars as pl

from flywheel_ml.core.contract import Contract, to_naive_utc
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.utils.errors import ConfigError, DataError


def check_span(since: datetime | None, until: datetime | None) -> None:
    """Reject an empty span with a `ConfigError`."""
    if since is not None and until is not None and to_naive_utc(since) >= to_naive_utc(until):
        raise ConfigError(f"--since is {since:%F %T} and --until {until:%F %T}; --since must be the earlier one")


def cut_span(table: pl.DataFrame, contract: Contract, since: datetime | None, until: datetime | None) -> pl.DataFrame:
    """Keep the rows with since ≤ time < until.

    Raises:
        ConfigError: the contract has no time column.
        DataError: no row lies in the span.
    """
    if contract.time is None:
        raise ConfigError("contract.yaml: no column has role time, so there is no span to cut")
    if table.schema.get(contract.time.name) != tables.DTYPES["datetime"]:
        raise DataError(f"the table has no timestamps in '{contract.time.name}', so there is no span to cut")
    time = pl.col(contract.time.name)
    rows = table
    if since is not None:
        rows = rows.filter(time >= contract.to_time_zone(since))
    if until is not None:
        rows = rows.filter(time < contract.to_time_zone(until))
    if rows.is_empty():
        raise DataError(
            f"no row is between {since} and {until}; the table spans {tables.describe_span(table[contract.time.name])}"
        )
    return rows


def export_span(
    output: Path, contract: Contract, params: Params, since: datetime | None, until: datetime | None
) -> int:
    """Write a span of the raw table to `output`; returns its rows.

    It begins at `data.until` of params.yaml if `since` is not given, and is a month long if `until` is not.

    Raises:
        ConfigError: it ends before it begins; otherwise as `cut_span`.
    """
    start = since or params.data.until
    end = until or (start and pl.Series([start]).dt.offset_by("1mo")[0])
    check_span(start, end)
    rows = cut_span(tables.read(params.data.raw, contract), contract, start, end)
    tables.write(rows, output)
    return rows.height
