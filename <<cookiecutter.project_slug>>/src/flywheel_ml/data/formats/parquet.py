"""Parquet: one file, or a folder of parts, whose partitions (`year=2024/…`) become columns."""

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from flywheel_ml.data.formats.repairs import Repair
from flywheel_ml.utils.errors import DataError

_MAGIC = b"PAR1"


def scan(path: Path) -> pl.LazyFrame:
    """Scan one file.

    Raises:
        DataError: it is truncated or damaged.
    """
    with path.open("rb") as stream:
        stream.seek(-min(len(_MAGIC), path.stat().st_size), os.SEEK_END)
        tail = stream.read()
    if tail != _MAGIC:
        raise DataError(f"{path} is truncated: its Parquet footer is missing; copy or download it again")
    _read_schema(path)
    return pl.scan_parquet(path)


def scan_folder(path: Path) -> tuple[pl.LazyFrame, tuple[Repair, ...]]:
    """Scan all Parquet files below a folder; a column that some files lack is missing in their rows.

    Raises:
        DataError: there is no Parquet file, one is damaged, or a column has incompatible types.
    """
    files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    if not files:
        raise DataError(f"{path} is a folder without Parquet files; give one file, or a folder of .parquet files")
    schemas = [_read_schema(file) for file in files]
    if all(schema == schemas[0] for schema in schemas):
        return pl.scan_parquet(files, hive_partitioning=True), ()
    _check_types(path, files, schemas)
    parts = [pl.scan_parquet(file, hive_partitioning=True) for file in files]
    names = dict.fromkeys(name for schema in schemas for name in schema)
    partial = [name for name in names if any(name not in schema for schema in schemas)]
    repairs = tuple(
        Repair(
            "partial column",
            f"'{name}' is in {sum(name in schema for schema in schemas):,} of {len(files):,} files",
            "missing in the others",
        )
        for name in partial
    )
    return pl.concat(parts, how="diagonal_relaxed"), repairs


def build_damaged_error(path: Path) -> DataError:
    """Build the error for a Parquet file that cannot be decoded."""
    return DataError(f"{path} is damaged and cannot be read as Parquet; copy or download it again")


def _read_schema(file: Path) -> pl.Schema:
    try:
        return pl.Schema(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        raise build_damaged_error(file) from None


def _check_types(path: Path, files: Sequence[Path], schemas: Sequence[pl.Schema]) -> None:
    seen: dict[str, tuple[Path, pl.DataType]] = {}
    for file, schema in zip(files, schemas, strict=True):
        for name, kind in schema.items():
            if kind == pl.Null():
                continue
            other, before = seen.setdefault(name, (file, kind))
            families = {_family(before), _family(kind)}
            if len(families) > 1 and families != {"number", "text"}:
                raise DataError(
                    f"{path}: column '{name}' is {before} in {other.relative_to(path)} and {kind} in "
                    f"{file.relative_to(path)}; write it with one type in all files"
                )


def _family(kind: pl.DataType) -> str:
    """Types of one family can be read as one type; numbers and texts as texts."""
    if kind.is_numeric() or kind == pl.Boolean():
        return "number"
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return "text"
    if isinstance(kind, pl.Date | pl.Datetime):
        return f"timestamp {getattr(kind, 'time_zone', None) or ''}"
    return str(kind)
