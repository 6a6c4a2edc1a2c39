"""Tables on disk: read with a clear word on what is wrong, written whole, hashed before they are trusted."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ..contract import Column, Contract
from ..errors import DataError, IntegrityError
from ..files import replacing, sha256_file
from ..strict import nearest

DTYPES: dict[str, pl.DataType] = {
    "float": pl.Float64(),
    "integer": pl.Int64(),
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "datetime": pl.Datetime("us"),
}
_MAGIC = b"PAR1"
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def read(path: Path, contract: Contract) -> pl.DataFrame:
    """A whole table, its columns in the contract's types where every value fits and as they are where not.

    Raises:
        DataError: the file is missing, empty, cut off, or is not what its name says.
    """
    return conform(pl.concat(_raw_chunks(path, contract, None)), contract)


def chunks(path: Path, contract: Contract, rows: int) -> Iterator[pl.DataFrame]:
    """The table in pieces of at most `rows` rows; types and errors as in `read`."""
    for chunk in _raw_chunks(path, contract, rows):
        yield conform(chunk, contract)


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file from its footer; None where only reading all of it would tell."""
    if path.suffix != ".parquet":
        return None
    return int(pq.read_metadata(path).num_rows)


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


def span(moments: pl.Series) -> str:
    """The first and the last of a column of moments, in words."""
    return f"{moments.min()!s} to {moments.max()!s}"


def conform(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Cast every column to its contract type if that loses nothing; columns that do not fit stay as they are."""
    types = {column.name: column for column in contract.columns}
    return frame.with_columns(_cast(frame[name], types[name]) for name in frame.columns if name in types)


def conform_value(value: str | None, column: Column) -> bool:
    """Whether a text reads as a value of the column's type."""
    return _parse(pl.Series([value], dtype=pl.String), column).dtype == DTYPES[column.type]


def _cast(series: pl.Series, column: Column) -> pl.Series:
    wanted = DTYPES[column.type]
    if series.dtype == wanted:
        return series
    if isinstance(series.dtype, pl.Datetime) and column.type == "datetime":
        naive = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if series.dtype.time_zone else series
        return naive.cast(wanted)
    if series.dtype == pl.String:
        return _parse(series, column)
    if column.type == "string" or series.dtype in (pl.Boolean, pl.Categorical):
        return series
    cast = series.cast(wanted, strict=False)
    same = cast.null_count() == series.null_count() and (
        not series.dtype.is_float() or column.type == "float" or (cast.cast(series.dtype) == series).all()
    )
    return cast if same else series


def _parse(series: pl.Series, column: Column) -> pl.Series:
    text = series.str.strip_chars()
    text = pl.select(pl.when(text != "").then(text)).to_series().rename(series.name)
    if column.type == "boolean":
        parsed = text.str.to_lowercase().replace_strict(_BOOLEANS, default=None, return_dtype=pl.Boolean)
    elif column.type == "datetime":
        parsed = text.str.to_datetime(time_unit="us", strict=False)
        if parsed.dtype != DTYPES["datetime"]:
            parsed = parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    else:
        parsed = text.cast(DTYPES[column.type], strict=False)
    return parsed if parsed.null_count() == text.null_count() else series


def _to_array(series: pl.Series, column: Column) -> np.ndarray:
    if column.is_numeric:
        series = series.cast(pl.Float64).fill_null(float("nan"))
    array: np.ndarray = series.to_numpy()
    return array


def _raw_chunks(path: Path, contract: Contract, rows: int | None) -> Iterator[pl.DataFrame]:
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*") if other.is_file()] or ["nothing"])
        raise DataError(f"{path} does not exist; in that folder: {near}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); give a table with a header and rows")
    readers = {".parquet": _parquet, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table's name ends in .parquet or .csv, not in '{path.suffix}'")
    empty = True
    for chunk in readers[path.suffix.lower()](path, contract, rows):
        empty = empty and chunk.is_empty()
        yield chunk
    if empty:
        raise DataError(f"{path} has a header but no rows; there is nothing to read")


def _parquet(path: Path, _: Contract, rows: int | None) -> Iterator[pl.DataFrame]:
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 4))
        tail = stream.read(4)
    if head != _MAGIC:
        raise DataError(
            f"{path} is no Parquet file (it starts with {head!r}, not with {_MAGIC!r}); rename or convert it"
        )
    if tail != _MAGIC:
        raise DataError(f"{path} is cut off: its Parquet footer is missing; copy or download it again")
    try:
        if rows is None:
            yield pl.read_parquet(path, memory_map=False)
            return
        for batch in pq.ParquetFile(path).iter_batches(batch_size=rows):
            yield _frame(batch)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _frame(batch: Any) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _csv(path: Path, contract: Contract, rows: int | None) -> Iterator[pl.DataFrame]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    names = {column.name for column in contract.columns}
    best = max(_DELIMITERS, key=lambda d: len(names.intersection(_cells(header, d))))
    if best != "," and not names.intersection(_cells(header, ",")) and names.intersection(_cells(header, best)):
        raise DataError(
            f"{path} is delimited by {_DELIMITERS[best]}s, not by commas; "
            f"save it with commas (its header starts with {header[:40]!r})"
        )
    try:
        # All text: the contract, not a guess from the first rows, says what a value is.
        lazy = pl.scan_csv(path, infer_schema=False)
        if rows is None:
            yield lazy.collect()
        else:
            for chunk in lazy.collect_batches(chunk_size=rows, maintain_order=True):
                yield from chunk.iter_slices(rows)
    except pl.exceptions.NoDataError:
        raise DataError(f"{path} is empty; give a table with a header and rows") from None
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}") from None


def _cells(header: str, delimiter: str) -> list[str]:
    return next(csv.reader([header], delimiter=delimiter), [])
