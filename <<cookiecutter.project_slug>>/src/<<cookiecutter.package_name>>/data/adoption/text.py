"""Delimited text of any make: encoding, compression, delimiter and header told from the bytes."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import polars as pl

from ...errors import DataError
from ...strict import repeated

_BLOCK = 1_048_576
_HEAD = 262_144
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NUMBER = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")


class Scanned(NamedTuple):
    """A scan whose columns are all text and called by position, their names, and what parts them."""

    rows: pl.LazyFrame
    columns: tuple[str, ...]
    told: str


def plain(path: Path, scratch: Path) -> tuple[Path, tuple[str, ...]]:
    """The file itself if it is UTF-8 text with usual line ends, else a copy of that kind; and what was undone.

    Raises:
        DataError: the file is damaged, or is no text.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with _open(path, packed) as stream:
            head = stream.read(_HEAD)
        encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "") or _without_mark(head)
        if not encoding:
            encoding = "utf-8" if _is_utf8(path, packed) else _western(path, packed)
        # The line ends of old Macs are none to Polars.
        returns = encoding in ("utf-8", "cp1252", "latin-1") and b"\n" not in head and b"\r" in head
        told = (*(["gzip"] if packed else []), *([encoding.upper()] if encoding not in ("utf-8", "utf-8-sig") else []))
        if not packed and not returns and encoding in ("utf-8", "utf-8-sig"):
            return path, told
        copy = scratch / "input.txt"
        with _open(path, packed) as stream, copy.open("w", encoding="utf-8", newline="\n" if returns else "") as target:
            reader = io.TextIOWrapper(stream, encoding=encoding, newline=None if returns else "")
            while block := reader.read(_BLOCK):
                target.write(block)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no {error.encoding} text (byte {error.start:,}); save it as CSV in UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged gzip ({error}); copy or download it again") from None
    return copy, told


def scan(readable: Path, path: Path) -> Scanned:
    """A scan of delimited UTF-8 text; `path` is what errors call it.

    Raises:
        DataError: no header can be told, or it names a column twice.
    """
    with readable.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.read(_HEAD)
    if not head.strip():
        raise DataError(f"{path} holds nothing but blanks; give a table with a header and rows")
    try:
        delimiter = _delimiter(head)
        with readable.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream, delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error} in its header") from None
    if len(header) > 1 and all(_NUMBER.fullmatch(name) for name in header):
        raise DataError(
            f"{path} has no header: its first line holds numbers ({', '.join(header[:3])}); put one above it"
        )
    columns = tuple(name.strip() or f"column_{at}" for at, name in enumerate(header, start=1))
    if twice := repeated(columns):
        raise DataError(f"{path}: the column '{twice[0]}' stands twice in the header; rename or drop one")
    rows = pl.scan_csv(
        readable,
        separator=delimiter,
        # All text: what a value is, is told later, from many rows.
        infer_schema=False,
        new_columns=[str(at) for at in range(len(columns))],
    )
    if len(columns) > 1:
        # Not as an expression: with thousands of columns Polars would plan it for minutes.
        rows = rows.map_batches(_without_blank_lines, streamable=True)
    return Scanned(rows, columns, _DELIMITERS[delimiter])


def _without_blank_lines(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(~pl.all_horizontal(pl.all().is_null()))


def _open(path: Path, packed: bool) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if packed else path.open("rb")


def _without_mark(head: bytes) -> str:
    """UTF-16 without its mark: every other byte is 0."""
    if b"\0" not in head:
        return ""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) // 4 and min(even, odd) < len(head) // 100 + 1:
        return "utf-16-be" if even > odd else "utf-16-le"
    raise UnicodeDecodeError("readable", head[:1], head.index(0), head.index(0) + 1, "a zero byte")


def _is_utf8(path: Path, packed: bool) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _open(path, packed) as stream:
            while block := stream.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _western(path: Path, packed: bool) -> str:
    """Windows-1252, unless there are bytes that it leaves undefined."""
    with _open(path, packed) as stream:
        while block := stream.read(_BLOCK):
            if any(byte in block for byte in b"\x81\x8d\x8f\x90\x9d"):
                return "latin-1"
    return "cp1252"


def _delimiter(head: str) -> str:
    """What parts the columns: the one that gives most lines as many cells as the header, and most of them."""

    def fit(delimiter: str) -> tuple[float, int]:
        try:
            lines = [line for line in _cells(head, delimiter) if line][:200]
        except csv.Error:
            # Not a single one of these for so long that a cell has no end.
            return 0.0, 0
        width = len(lines[0])
        same = sum(len(line) == width for line in lines) / len(lines)
        return (same if width > 1 else 0.0, width)

    return max(_DELIMITERS, key=fit)


def _cells(head: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
