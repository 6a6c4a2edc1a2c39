"""Tables on disk: read with a clear word on what is wrong, written whole, hashed before they are trusted."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ..contract import INTEGER_LIMIT, Column, Contract, moment
from ..errors import DataError, IntegrityError
from ..files import replacing, sha256_file
from .formats import reading

_ROWS = 1_000_000
DTYPES: dict[str, pl.DataType] = {
    "float": pl.Float64(),
    "integer": pl.Int64(),
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "datetime": pl.Datetime("us"),
}
BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
ABSENT = [
    "",
    "na",
    "n/a",
    "#n/a",
    "nan",
    "null",
    "(null)",
    "none",
    "nil",
    "missing",
    "unknown",
    "k.a.",
    "k. a.",
    "n.a.",
    "n.d.",
    "s/d",
    "?",
    "-",
    "--",
    ".",
    "\\n",
]
"""Words for a missing value in texts that stand for numbers, booleans or moments; in lower case."""


def read(path: Path, contract: Contract) -> pl.DataFrame:
    """A whole table of any format, its columns in the contract's types where every value fits, else as they are.

    Raises:
        DataError: the file is missing, empty, cut off, or is not what its name says.
    """
    with reading.opened(str(path)) as found:
        return conform(pl.concat(_filled(found, path, _ROWS)), contract)


def chunks(path: Path, contract: Contract, rows: int) -> Iterator[pl.DataFrame]:
    """The table in pieces of at most `rows` rows; types and errors as in `read`."""
    with reading.opened(str(path)) as found:
        for chunk in _filled(found, path, rows):
            yield conform(chunk, contract)


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file from its footer; None where only reading all of it would tell."""
    try:
        return int(pq.read_metadata(path).num_rows) if path.suffix.lower() == ".parquet" else None
    except (pa.ArrowException, OSError):
        return None


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write Parquet atomically; equal frames give equal bytes."""
    with replacing(path) as part:
        frame.write_parquet(part, compression="zstd", statistics=True)


def read_verified(path: Path, sha256: str) -> pl.DataFrame:
    """Read a table that an earlier stage wrote, if it still is the one that was written.

    Raises:
        IntegrityError: the bytes differ from those the stage hashed: the DVC cache or the disk is at fault.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; run `dvc checkout`, or `dvc repro` to make it again")
    if sha256_file(path) != sha256:
        raise IntegrityError(
            f"{path} is not the file that its stage wrote (a corrupted DVC cache restores such files without a word); "
            f"delete it and its object in .dvc/cache, then `dvc pull` or `dvc repro --force`"
        )
    return pl.read_parquet(path, memory_map=False)


def to_columns(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """`Columns` (see contract.py) of the named columns of a frame."""
    return {column.name: _to_array(frame[column.name], column) for column in columns}


def truth(frame: pl.DataFrame, contract: Contract) -> np.ndarray:
    """The target of n_rows as numbers, see `Contract.truth`."""
    target = contract.target
    return contract.truth(_to_array(frame[target.name], target))


def span(moments: pl.Series) -> str:
    """The first and the last of a column of moments, in words."""
    return f"{moments.min()!s} to {moments.max()!s}"


def conform(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Cast every column to its contract type if that loses nothing; columns that do not fit stay as they are.

    NaN counts as missing. In texts, so do an empty cell and the usual words (NA, NaN, null, none) where a number,
    a boolean or a moment is wanted; moments are ISO 8601, converted to UTC where they name a time zone.
    """
    types = {column.name: column for column in contract.columns}
    return frame.with_columns(_conform(frame[name], types[name]) for name in frame.columns if name in types)


def misfits(series: pl.Series, column: Column) -> pl.Series:
    """Which values keep a column from its contract type, bool [n_rows]."""
    return _fit(series, column)[1]


def _filled(found: reading.Opened, path: Path, rows: int) -> Iterator[pl.DataFrame]:
    """The batches that have rows; at least one."""
    is_empty = True
    for batch in found.batches(rows):
        if not batch.is_empty():
            is_empty = False
            yield batch
    if is_empty:
        raise DataError(f"{path} has no rows; there is nothing to read")


def _conform(series: pl.Series, column: Column) -> pl.Series:
    values, wrong = _fit(series, column)
    return series if wrong.any() else values


def _fit(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    """The values in the contract's type, and which of them have no place in it."""
    wanted, found = DTYPES[column.type], series.dtype
    if found.is_float():
        series = series.fill_nan(None)
    values = None
    if found == wanted:
        values = series
    elif isinstance(found, pl.Categorical | pl.Enum | pl.Time) and column.type == "string":
        values = series.cast(wanted)
    elif isinstance(found, pl.Datetime | pl.Date) and column.type == "datetime":
        zone = found.time_zone if isinstance(found, pl.Datetime) else None
        values = (series.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zone else series).cast(wanted)
    elif isinstance(found, pl.String):
        return _parse(series, column)
    elif isinstance(found, pl.Duration) and column.type == "float":
        values = series.dt.total_microseconds() / 1e6
    elif found.is_integer() and column.type == "string" and not _are_exact(series):
        # The ids of some systems: only as texts can a model or a person tell them apart.
        values = series.cast(wanted)
    elif found.is_numeric() and column.is_numeric:
        cast = series.cast(wanted, strict=False)
        values = _only(cast, cast.cast(found, strict=False) == series)
    if values is None:
        values = pl.repeat(None, len(series), dtype=wanted, eager=True)
    return values.rename(series.name), values.is_null() & series.is_not_null()


def _parse(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    text = series.str.strip_chars()
    absent = text.is_null() | text.str.to_lowercase().is_in(ABSENT)
    text = _only(text, ~absent)
    if column.type == "boolean":
        values = text.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)
    elif column.type == "datetime":
        values = pl.Series(text.name, [_moment(value) for value in text], dtype=DTYPES["datetime"])
    elif column.type == "integer":
        # pandas writes an integer column that has gaps as 3.0.
        number = text.cast(pl.Float64, strict=False)
        whole = number.cast(pl.Int64, strict=False)
        exact = (whole.cast(pl.Float64) == number) & (number.abs() <= INTEGER_LIMIT)
        values = pl.select(pl.coalesce(text.cast(pl.Int64, strict=False), _only(whole, exact))).to_series()
    else:
        values = text.cast(pl.Float64, strict=False)
    return values.rename(series.name), values.is_null() & ~absent


def _are_exact(whole: pl.Series) -> bool:
    return bool(whole.cast(pl.Int128).is_between(-INTEGER_LIMIT, INTEGER_LIMIT).all())


def _only(values: pl.Series, kept: pl.Series) -> pl.Series:
    return pl.select(pl.when(kept).then(values)).to_series()


def _moment(text: str | None) -> datetime | None:
    try:
        return moment(text) if text is not None else None
    except ValueError:
        return None


def _to_array(series: pl.Series, column: Column) -> np.ndarray:
    if column.is_numeric:
        series = series.cast(pl.Float64).fill_null(float("nan"))
    array: np.ndarray = series.to_numpy()
    return array
