"""A table of any format, opened as a Polars scan: delimited text, Parquet, JSON, Arrow IPC, a SQL query.

`adopt`, `score`, `ingest` and `monitor` all read the user's tables through this module.
"""

import errno
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl

from flywheel_ml.data.formats import database, json_rows, parquet, text
from flywheel_ml.data.formats.repairs import Repair
from flywheel_ml.utils.config_model import find_duplicates, suggest
from flywheel_ml.utils.errors import DataError

_MAGIC = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow IPC",
    b"\xff\xff\xff\xff": "Arrow stream",
    b"PK\x03\x04": "zip (or Excel)",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"SQLite format 3": "SQLite",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF": "PDF",
    b"\x89HDF": "HDF5",
    b"Obj\x01": "Avro",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"version https://git-lfs": "a pointer of Git LFS",
    **dict.fromkeys((b"<!doctype", b"<!DOCTYPE", b"<html", b"<HTML", b"<?xml", b"<table"), "HTML or XML"),
}
"""First bytes of files that are neither delimited text nor JSON."""
_REMEDY = {
    "zip (or Excel)": "unpack it, or save it as CSV",
    "Excel": "save it as CSV",
    "SQLite": 'give sqlite:///PATH and --query "select …"',
    "bzip2": "unpack it",
    "xz": "unpack it",
    "zstd": "unpack it",
    "PDF": "give the table itself",
    **dict.fromkeys(("HDF5", "Avro", "pickle"), "save it as Parquet or CSV"),
    "a pointer of Git LFS": "run `git lfs pull`",
    "HTML or XML": "download the table itself, or save it as CSV",
}
_KINDS_BY_SUFFIX = {
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "Arrow IPC"),
    **dict.fromkeys((".json", ".ndjson", ".jsonl"), "JSON"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ".data"), "text"),
}
"""Kind of a file by its suffix."""
_GZIP, _GZIP_SUFFIX = b"\x1f\x8b", ".gz"


class OpenTable(NamedTuple):
    """A scan over the rows, the table's name, and notes on how the source was read.

    `columns` are the names in order, in Unicode's composed form (NFC); the scan's own are their positions (`"0"`,
    `"1"`, …), which no name can break. `semicolons` is true for a text whose columns are separated by semicolons;
    `repairs` are repaired irregularities of the file; `quoted` are columns in which an NA is quoted.
    """

    rows: pl.LazyFrame
    columns: tuple[str, ...]
    name: str
    notes: tuple[str, ...] = ()
    semicolons: bool = False
    repairs: tuple[Repair, ...] = ()
    quoted: tuple[str, ...] = ()

    def batches(self, rows: int) -> Iterator[pl.DataFrame]:
        """Yield all rows in order under their column names, at most `rows` at a time."""
        names = {str(at): name for at, name in enumerate(self.columns)}
        for batch in self.rows.collect_batches(chunk_size=rows, maintain_order=True):
            yield from batch.rename(names).iter_slices(rows)


@contextmanager
def open_table(source: str, query: str = "", scratch: Path | None = None) -> Iterator[OpenTable]:
    """Open a file, a folder of Parquet files, or the rows of a query on a database URL.

    Sources that cannot be scanned in place (another encoding, gzip, an irregular text, a query's rows) are copied to
    the folder `scratch`, or to a temporary one.

    Raises:
        DataError: the source is missing, empty, unreadable, or of another format than its name says.
        OSError: the disk is full.
    """
    if scratch is None:
        # Not TemporaryDirectory, which warns if a reader is abandoned and the generator collected.
        folder = tempfile.mkdtemp()
        try:
            with open_table(source, query, Path(folder)) as found:
                yield found
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        if database.is_url(source):
            yield _number_columns(database.scan_query(source, query, scratch), "query", source)
        else:
            yield _open_file(source, query, scratch)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if f"os error {errno.ENOSPC}" in str(error):  # From a copy written while reading.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise _build_unreadable_error(source) from None


def _build_unreadable_error(source: str) -> DataError:
    path = Path(source)
    if path.is_file() and _detect_kind(path) == "Parquet":
        return parquet.build_damaged_error(path)
    return DataError(
        f"{database.mask_password(source)} is damaged and cannot be read; copy, download or write it again"
    )


def _open_file(source: str, query: str, scratch: Path) -> OpenTable:
    path = Path(source).expanduser()
    if query:
        raise DataError(f"--query needs a database URL, such as sqlite:///shop.db, and {path} is a file's name")
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*") if not other.name.startswith(".")]
        hint = suggest(path.name, beside) if beside else "nothing"
        raise DataError(f"{path} does not exist; in that folder: {hint}")
    if path.is_dir():
        rows, repairs = parquet.scan_folder(path)
        return _number_columns(rows, path.resolve().name, path, repairs=repairs)
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device, and a table is read more than once; save it as a file")
    name, kind = _table_name(path), _detect_kind(path)
    if kind == "Parquet":
        return _number_columns(parquet.scan(path), name, path)
    if kind == "Arrow IPC":
        return _number_columns(pl.scan_ipc(path), name, path)
    if kind == "Arrow stream":
        return _number_columns(pl.read_ipc_stream(path).lazy(), name, path)
    plain, notes = text.to_plain_file(path, scratch)
    if kind == "JSON":
        return _number_columns(json_rows.scan(plain, path, scratch), name, path, notes)
    table = text.scan(plain, path, scratch)
    names = _normalize_names(table.columns, path)
    quoted = tuple(names[at] for at in table.quoted)
    return OpenTable(
        table.rows,
        names,
        name,
        (*notes, table.delimiter_name),
        table.delimiter_name == "semicolons",
        table.repairs,
        quoted,
    )


def _table_name(path: Path) -> str:
    name = path.name
    for suffix in reversed(path.suffixes):
        name = name.removesuffix(suffix) if suffix.lower() in (*_KINDS_BY_SUFFIX, _GZIP_SUFFIX) else name
    return name


def _detect_kind(path: Path) -> str:
    """Detect a file's kind from its name and its first bytes, which must agree.

    Raises:
        DataError: they disagree, or the kind is not supported.
    """
    with path.open("rb") as stream:
        head = stream.read(32)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); give a table with a header and rows")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [_GZIP_SUFFIX]
    if packed != head.startswith(_GZIP):
        better = path.name[: -len(_GZIP_SUFFIX)] if packed else path.name + _GZIP_SUFFIX
        raise DataError(f"{path} is {'not ' if packed else ''}gzip by its content; rename it to {better}")
    named = _KINDS_BY_SUFFIX.get(next(reversed(suffixes[: -1 if packed else None]), ""), "")
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if found in _REMEDY:
        raise DataError(f"{path} is {found} by its content; {_REMEDY[found]}")
    if found and named not in ("", found):
        raise DataError(f"{path} is {found} by its content, not {path.suffix[1:]}; rename it")
    if not found and named in ("Parquet", "Arrow IPC"):
        raise DataError(f"{path} is not a {named} file (it starts with {head[:8]!r}); rename or convert it")
    return found or named


def _number_columns(
    rows: pl.LazyFrame, name: str, source: Path | str, notes: tuple[str, ...] = (), repairs: tuple[Repair, ...] = ()
) -> OpenTable:
    columns = rows.collect_schema().names()
    numbered = rows.select(pl.nth(at).alias(str(at)) for at in range(len(columns)))
    return OpenTable(numbered, _normalize_names(columns, source), name, notes, repairs=repairs)


def _normalize_names(found: Sequence[str], source: Path | str) -> tuple[str, ...]:
    """Normalise and check column names: stripped, in composed form (NFC), and unique."""
    names = tuple(normalize_name(name) or f"column_{at}" for at, name in enumerate(found, start=1))
    if twice := find_duplicates(names):
        raise DataError(f"{source}: the column '{twice[0]}' appears twice in the header; rename or drop one")
    return names


def normalize_name(name: str) -> str:
    """Strip a column's name and convert it to Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name.strip())
