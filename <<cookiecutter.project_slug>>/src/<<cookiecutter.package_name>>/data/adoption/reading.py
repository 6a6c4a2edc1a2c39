"""A table of any format, opened as a Polars scan: CSV and its kin, Parquet, NDJSON, Arrow IPC, a SQL query."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ...errors import DataError
from ...strict import nearest
from . import database, text

_MAGIC = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow IPC",
    b"PK\x03\x04": "zip (or Excel)",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"SQLite format 3": "SQLite",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF": "PDF",
}
"""How files begin whose content is no text."""
_REMEDY = {
    "zip (or Excel)": "unpack it, or save it as CSV",
    "Excel": "save it as CSV",
    "SQLite": 'give sqlite:///PATH and --query "select …"',
    "bzip2": "unpack it",
    "xz": "unpack it",
    "zstd": "unpack it",
    "PDF": "give the table itself",
}
_NAMED = {
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "Arrow IPC"),
    **dict.fromkeys((".json", ".ndjson", ".jsonl"), "JSON"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ".data"), "text"),
}
"""What a file's name says that it is."""
_GZIP, _PACKED = b"\x1f\x8b", ".gz"


class Opened(NamedTuple):
    """A scan over the rows, a name for the table, and in words how the source was understood.

    `columns` are the names in order; the scan's own are their positions (`"0"`, `"1"`, …), which no name can break.
    `semicolons` says that the source is a text whose columns semicolons part.
    """

    rows: pl.LazyFrame
    columns: tuple[str, ...]
    name: str
    told: tuple[str, ...] = ()
    semicolons: bool = False


@contextmanager
def opened(source: str, query: str, scratch: Path) -> Iterator[Opened]:
    """Open a file, a folder of Parquet files, or the rows of a query on a database URL.

    What cannot be scanned where it lies (another encoding, gzip, a query's rows) is copied to the folder `scratch`.

    Raises:
        DataError: the source is missing, empty, unreadable, or not what its name says.
        OSError: the disk is full.
    """
    try:
        if database.is_url(source):
            yield _numbered(database.fetch(source, query, scratch), "query")
        else:
            yield _file(source, query, scratch)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if f"os error {errno.ENOSPC}" in str(error):  # Of what is written while it is read.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise DataError(f"{database.masked(source)} cannot be read: {_first_line(error)}") from None


def _file(source: str, query: str, scratch: Path) -> Opened:
    path = Path(source).expanduser()
    if query:
        raise DataError(f"--query needs a database URL, such as sqlite:///shop.db, and {path} is a file's name")
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*") if not other.name.startswith(".")]
        hint = nearest(path.name, beside) if beside else "nothing"
        raise DataError(f"{path} does not exist; in that folder: {hint}")
    if path.is_dir():
        return _numbered(_folder(path), path.resolve().name)
    if not path.is_file():
        raise DataError(f"{path} is a pipe or a device, and a table is read more than once; save it as a file")
    name, kind = _stem(path), _kind(path)
    if kind == "Parquet":
        return _numbered(pl.scan_parquet(path), name)
    if kind == "Arrow IPC":
        return _numbered(pl.scan_ipc(path), name)
    plain, told = text.plain(path, scratch)
    if kind == "JSON":
        return _numbered(_json(plain, path), name, told)
    table = text.scan(plain, path)
    return Opened(table.rows, table.columns, name, (*told, table.told), table.told == "semicolons")


def _stem(path: Path) -> str:
    name = path.name
    for suffix in reversed(path.suffixes):
        name = name.removesuffix(suffix) if suffix.lower() in (*_NAMED, _PACKED) else name
    return name


def _kind(path: Path) -> str:
    """What a file holds, by its name and its first bytes, which must agree.

    Raises:
        DataError: they do not, or it is of a kind that cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(16)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); give a table with a header and rows")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [_PACKED]
    if packed != head.startswith(_GZIP):
        better = path.name[: -len(_PACKED)] if packed else path.name + _PACKED
        raise DataError(f"{path} is {'not ' if packed else ''}gzip by its content; rename it to {better}")
    named = _NAMED.get(next(reversed(suffixes[: -1 if packed else None]), ""), "")
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if found in _REMEDY:
        raise DataError(f"{path} is {found} by its content; {_REMEDY[found]}")
    if found and named not in ("", found):
        raise DataError(f"{path} is {found} by its content, not {path.suffix[1:]}; rename it")
    if not found and named in ("Parquet", "Arrow IPC"):
        raise DataError(f"{path} is no {named} file (it starts with {head[:8]!r}); rename or convert it")
    return found or named


def _folder(path: Path) -> pl.LazyFrame:
    if not any(path.rglob("*.parquet")):
        raise DataError(f"{path} is a folder without Parquet files; give one file, or a folder of .parquet files")
    return pl.scan_parquet(path / "**/*.parquet", hive_partitioning=True)


def _json(plain: Path, path: Path) -> pl.LazyFrame:
    with plain.open("rb") as stream:
        first = stream.read(4096).lstrip()[:1]
    if first == b"[":
        return pl.read_json(plain, infer_schema_length=None).lazy()
    if first != b"{":
        raise DataError(
            f"{path} is no JSON of rows (it starts with {first!r}); give one object a line, or a list of them"
        )
    return pl.scan_ndjson(plain, infer_schema_length=None)


def _numbered(rows: pl.LazyFrame, name: str, told: tuple[str, ...] = ()) -> Opened:
    columns = tuple(rows.collect_schema().names())
    return Opened(rows.select(pl.nth(at).alias(str(at)) for at in range(len(columns))), columns, name, told)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
