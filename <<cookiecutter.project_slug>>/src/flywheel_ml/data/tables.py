"""Reads tables with clear errors, writes them atomically, and verifies hashes between stages."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_ml.core.contract import FLOAT_LIMIT, INTEGER_LIMIT, Column, Contract
from flywheel_ml.core.parsing import TYPE_MESSAGES, parse_value
from flywheel_ml.core.parsing import series as cells
from flywheel_ml.data.formats import reading
from flywheel_ml.utils.errors import DataError, IntegrityError
from flywheel_ml.utils.files import replacing, sha256_file

DTYPES = cells.DTYPES
_ROWS = 1_000_000


def read(path: Path, contract: Contract) -> pl.DataFrame:
    """Read a whole table of any format; columns are converted to the contract's types if every value fits.

    Raises:
        DataError: the file is missing, empty, truncated, or of another format than its name says.
    """
    with reading.open_table(str(path)) as found:
        return conform(_rename_sources(pl.concat(_read_non_empty(found, path, _ROWS)), contract), contract)


def read_chunks(path: Path, contract: Contract, rows: int) -> Iterator[pl.DataFrame]:
    """Read the table in chunks of at most `rows` rows; types and errors as in `read`."""
    with reading.open_table(str(path)) as found:
        for chunk in _read_non_empty(found, path, rows):
            yield conform(_rename_sources(chunk, contract), contract)


def count_rows(path: Path) -> int | None:
    """Count the rows of a Parquet file from its footer; None for formats that must be read completely."""
    try:
        return int(pq.read_metadata(path).num_rows) if path.suffix.lower() == ".parquet" else None
    except (pa.ArrowException, OSError):
        return None


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write Parquet atomically; equal frames give equal bytes."""
    with replacing(path) as part:
        frame.write_parquet(part, compression="zstd", statistics=True)


def read_verified(path: Path, sha256: str) -> pl.DataFrame:
    """Read a table that an earlier stage wrote, after verifying its hash.

    Raises:
        IntegrityError: the bytes differ from those the stage hashed: the DVC cache or the disk is at fault.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; run `dvc checkout`, or `dvc repro` to recreate it")
    if sha256_file(path) != sha256:
        raise IntegrityError(
            f"{path} is not the file that its stage wrote (a corrupted DVC cache restores such files silently); "
            f"delete it and its object in .dvc/cache, then `dvc pull` or `dvc repro --force`"
        )
    return pl.read_parquet(path, memory_map=False)


def to_columns(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """Convert the named columns of a frame to `Columns` (see core/contract.py)."""
    return {column.name: _to_array(frame[column.name], column) for column in columns}


def encode_target(frame: pl.DataFrame, contract: Contract) -> np.ndarray:
    """Encode the target of n_rows as numbers, see `Contract.encode_target`."""
    target = contract.target
    return contract.encode_target(_to_array(frame[target.name], target))


def describe_span(timestamps: pl.Series) -> str:
    """Describe the first and last timestamp of a column."""
    return f"{timestamps.min()!s} to {timestamps.max()!s}"


def conform(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Convert every column to its contract type; a column with an invalid cell stays as it is."""
    types = {column.name: column for column in contract.columns}
    return frame.with_columns(_conform(frame[name], types[name]) for name in frame.columns if name in types)


def find_misfits(series: pl.Series, column: Column) -> pl.Series:
    """Find the cells that prevent a column's contract type, bool [n_rows]."""
    return cells.parse_series(series, column)[1]


def describe_misfit(cell: object, column: Column) -> str:
    """Explain why a cell does not fit a column's contract type."""
    try:
        parse_value(cell, column)
    except ValueError as error:
        return str(error)
    return TYPE_MESSAGES[column.type]


def _read_non_empty(found: reading.OpenTable, path: Path, rows: int) -> Iterator[pl.DataFrame]:
    """Yield the batches that have rows; at least one."""
    is_empty = True
    for batch in found.batches(rows):
        if not batch.is_empty():
            is_empty = False
            yield batch
    if is_empty:
        raise DataError(f"{path} has no rows; there is nothing to read")


def _rename_sources(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Rename columns that have another name in the file to their contract names."""
    sources = {column.source: column.name for column in contract.columns if column.source}
    known = set(frame.columns)
    return frame.rename({old: new for old, new in sources.items() if old in known and new not in known})


def _conform(series: pl.Series, column: Column) -> pl.Series:
    values, wrong = cells.parse_series(series, column)
    return series if wrong.any() else values


def _to_array(series: pl.Series, column: Column) -> np.ndarray:
    if column.is_numeric:
        series = series.cast(pl.Float64)
        if column.type != "boolean":
            # Values that a model cannot distinguish from infinity or their neighbours count as missing.
            most = FLOAT_LIMIT if column.type == "float" else INTEGER_LIMIT
            series = pl.select(pl.when(series.is_between(-most, most)).then(series)).to_series()
        series = series.fill_null(float("nan"))
    array: np.ndarray = series.to_numpy()
    return array
