"""Reads delimited text; detects encoding, compression and layout from the bytes and repairs irregular files."""

import codecs
import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

import numpy as np
import polars as pl

from flywheel_ml.data.formats import layout
from flywheel_ml.data.formats.layout import Layout, Record
from flywheel_ml.data.formats.repairs import Repair
from flywheel_ml.utils.errors import DataError

_BLOCK = 1_048_576
_HEAD = 262_144
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_END = "\x00"
"""Appended after the last line while reading; it forms its own record unless a quote was never closed."""
_MAX_SHOWN = 60
_MAX_LINES_PER_CELL = 10_000
_LF, _CR, _QUOTE = b'\n\r"'


class ScannedText(NamedTuple):
    """A scan with text columns named by position, the column names, the delimiter, and repairs.

    `quoted` are the positions of the columns in which an NA is quoted, in the first rows.
    """

    rows: pl.LazyFrame
    columns: tuple[str, ...]
    delimiter_name: str
    repairs: tuple[Repair, ...] = ()
    quoted: tuple[int, ...] = ()


def to_plain_file(path: Path, scratch: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the file itself if it is UTF-8 text with usual line ends, else a converted copy; and notes on conversions.

    Raises:
        DataError: the file is damaged, or is not text.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with _open(path, packed) as stream:
            head = stream.read(_HEAD)
        encoding = next(
            (name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), ""
        ) or _detect_utf16(head)
        if not encoding:
            encoding = "utf-8" if _is_utf8(path, packed) else _detect_western(path, packed)
        # Polars does not recognise the line ends of old Macs.
        returns = encoding in ("utf-8", "cp1252", "latin-1") and b"\n" not in head and b"\r" in head
        notes = (*(["gzip"] if packed else []), *([encoding.upper()] if encoding not in ("utf-8", "utf-8-sig") else []))
        if not packed and not returns and encoding in ("utf-8", "utf-8-sig"):
            return path, notes
        copy = scratch / "input.txt"
        with _open(path, packed) as stream, copy.open("w", encoding="utf-8", newline="\n" if returns else "") as target:
            reader = io.TextIOWrapper(stream, encoding=encoding, newline=None if returns else "")
            while block := reader.read(_BLOCK):
                target.write(block)
    except UnicodeDecodeError as error:
        place = f"byte {error.start:,}"
        raise DataError(f"{path} is not {error.encoding} text ({place}); save it as CSV in UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged gzip ({error}); copy or download it again") from None
    return copy, notes


def scan(readable: Path, path: Path, scratch: Path) -> ScannedText:
    """Scan delimited UTF-8 text; errors name `path`.

    A file that Polars would misread or reject (titles above the header, short rows, a repeated header,
    quotes within cells) is copied to `scratch` as regular CSV.

    Raises:
        DataError: no header is found, it names a column twice, or a row has more cells than it.
    """
    with readable.open(encoding="utf-8-sig", newline="") as stream:
        head = stream.read(_HEAD) + "".join(stream.readline() for _ in range(3))
        is_whole = not stream.read(1)
    if not head.strip():
        raise DataError(f"{path} contains only blanks; give a table with a header and rows")
    found = layout.find_layout(head, is_whole)
    header = found.header
    if len(header) > 1 and all(layout.is_number(name) for name in header):
        raise DataError(
            f"{path} has no header: its first line holds numbers ({', '.join(header[:3])}); put one above it"
        )
    repairs: tuple[Repair, ...] = ()
    delimiter = found.delimiter
    if not _is_regular(readable, found):
        readable, repairs = _rewrite(readable, path, found, scratch / "rows.csv")
        delimiter = ","
    rows = pl.scan_csv(
        readable,
        separator=delimiter,
        # All text: types are detected later, from many rows.
        infer_schema=False,
        new_columns=[str(at) for at in range(found.width)],
    )
    if found.width > 1:
        # Not as an expression: with thousands of columns Polars would need minutes to plan it.
        rows = rows.map_batches(_drop_blank_lines, streamable=True)
    names = ("", *header) if found.has_row_names else header
    return ScannedText(rows, names, found.delimiter_name, repairs, _find_quoted_na(head, found))


def _find_quoted_na(head: str, found: Layout) -> tuple[int, ...]:
    if '"NA"' not in head:
        return ()
    cut = re.escape(found.delimiter)
    cell = re.compile(rf'(?:^|{cut})("(?:[^"]|"")*"|[^{cut}]*)')
    records = [record for line in head.splitlines()[1:] if len(record := cell.findall(line)) == found.width]
    # If every cell is quoted, quotes carry no information.
    if all(text[:1] == '"' for record in records for text in record if text):
        return ()
    return tuple(at for at in range(found.width) if any(record[at] == '"NA"' for record in records))


def _drop_blank_lines(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(~pl.all_horizontal(pl.all().is_null()))


def _is_regular(path: Path, found: Layout) -> bool:
    """Whether every record has the header's cells, quotes enclose whole cells only, and the header comes once, first.

    False only means that the file is then read record by record.
    """
    if found.above or found.has_row_names:
        return False
    names = frozenset(name.strip().encode() for name in found.header)
    with path.open("rb") as stream:
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        for at, block in enumerate(_read_blocks(stream)):
            if not _is_regular_block(block, ord(found.delimiter), found.width, names, at == 0):
                return False
    return True


def _read_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Whole records, about a megabyte at a time."""
    while block := stream.read(_BLOCK) + stream.readline():
        lines = [block]
        is_open = block.count(b'"') % 2
        while is_open and len(lines) < _MAX_LINES_PER_CELL and (line := stream.readline()):
            lines.append(line)
            is_open ^= line.count(b'"') % 2
        yield b"".join(lines)


def _is_regular_block(block: bytes, delimiter: int, width: int, names: frozenset[bytes], is_first: bool) -> bool:
    data = np.frombuffer(block, dtype=np.uint8)
    ends, cuts, returns, quotes = (np.flatnonzero(data == byte) for byte in (_LF, delimiter, _CR, _QUOTE))
    if len(quotes):
        if len(quotes) % 2 or not _enclose_cells(data, quotes, delimiter):
            return False
        ends, cuts, returns = (at[np.searchsorted(quotes, at) % 2 == 0] for at in (ends, cuts, returns))
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    if (data[np.minimum(returns + 1, len(data) - 1)] != _LF).any():
        return False
    cells = np.diff(np.searchsorted(cuts, ends), prepend=0) + 1
    sizes = np.diff(ends, prepend=-1) - 1
    is_blank = (sizes == 0) | ((sizes == 1) & (data[np.maximum(ends - 1, 0)] == _CR))
    if not (cells[~is_blank] == width).all():
        return False
    starts = np.append(0, ends[:-1] + 1)[is_first:]
    # Only lines whose first byte may start a header, in any order, with quotes or a byte order mark.
    begins = [*(name[0] for name in names if name), _QUOTE, codecs.BOM_UTF8[0]]
    longest = max(map(len, names), default=0) + len(codecs.BOM_UTF8) + 3
    suspects = (block[at : at + longest] for at in starts[np.isin(data[starts], begins)].tolist())
    return width == 1 or not any(_first_cell(line, delimiter) in names for line in suspects)


def _first_cell(line: bytes, delimiter: int) -> bytes:
    cell = line.partition(b"\n")[0].partition(bytes((delimiter,)))[0]
    return cell.removeprefix(codecs.BOM_UTF8).strip(b' \r"')


def _enclose_cells(data: np.ndarray, quotes: np.ndarray, delimiter: int) -> bool:
    opening, closing = quotes[0::2], quotes[1::2]
    before = data[opening[opening > 0] - 1]
    after = data[closing[closing < len(data) - 1] + 1]
    return bool(np.isin(before, (delimiter, _LF, _QUOTE)).all() and np.isin(after, (delimiter, _LF, _CR, _QUOTE)).all())


def _rewrite(readable: Path, path: Path, found: Layout, copy: Path) -> tuple[Path, tuple[Repair, ...]]:
    """Write a regular copy of a file; returns it and the repairs.

    Raises:
        DataError: a row has more cells than the header, or only one, or a quote is never closed.
    """
    header = [name.strip() for name in found.header]
    repeated: list[int] = []
    short: list[int] = []
    with readable.open(encoding="utf-8-sig", newline="") as source, copy.open("w", encoding="utf-8") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(range(found.width))
        for line, record in _read_records(source, path, found):
            # An appended file may repeat the byte order mark.
            cells = [cell.strip().removeprefix("\ufeff").strip('"') for cell in record]
            if cells == header and found.width > 1:
                repeated.append(line)
                continue
            if found.width > 1 and sorted(cells) == sorted(header):
                raise DataError(
                    f"{path}, line {line:,}: the header appears again, in another order "
                    f"({_abbreviate(record, found)}); split the file there, or write both parts in one order"
                )
            if len(record) < found.width:
                short.append(line)
            writer.writerow(_fit_to_header(record, line, path, found))
    return copy, tuple(_list_repairs(found, repeated, short))


def _read_records(source: TextIO, path: Path, found: Layout) -> Iterator[tuple[int, list[str]]]:
    """The records below the header that are not blank, each with the number of its first line."""
    reader = layout.build_reader(itertools.chain(source, [_END]), found.delimiter)
    line = 1
    # An error here means that a cell exceeds the size limit.
    with suppress(csv.Error):
        for at, record in enumerate(reader):
            if record == [_END]:
                return
            if record and record[-1].endswith(_END):
                break
            if at > found.above and not layout.is_blank(record):
                yield line, record
            line = reader.line_num + 1
    raise DataError(f"{path}, line {line:,}: the quote that opens there is never closed; close or delete it")


def _fit_to_header(record: Record, line: int, path: Path, found: Layout) -> Record:
    """Pad or trim a record to the header's number of cells."""
    width, size = found.width, len(record)
    if size == 1 < width:
        raise DataError(
            f"{path}, line {line:,}: one cell where the header has {width} "
            f"({_abbreviate(record, found)}); delete the line"
        )
    if any(cell.strip() for cell in record[width:]):
        raise DataError(
            f"{path}, line {line:,}: {size} cells where the header has {width} ({_abbreviate(record, found)}); "
            f"quote a cell that holds {found.delimiter_name}, or delete the line"
        )
    return [*record, *[""] * (width - size)][:width]


def _abbreviate(record: Record, found: Layout) -> str:
    text = found.delimiter.join(" ".join(cell.split()) for cell in record)
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def _list_repairs(found: Layout, repeated: Sequence[int], short: Sequence[int]) -> Iterator[Repair]:
    if found.above:
        yield Repair("lines above the header", f"{found.above} line{'s' if found.above > 1 else ''}", "skipped")
    if found.has_row_names:
        yield Repair("names of rows", "the header has one cell less than the rows", "the first column has no name")
    if repeated:
        yield Repair("repeated header", _describe_lines(repeated), "left out")
    if short:
        yield Repair("short rows", f"fewer cells than the header: {_describe_lines(short)}", "the rest is missing")


def _describe_lines(found: Sequence[int]) -> str:
    return f"{len(found):,} line{'s' if len(found) > 1 else ''}, the first is line {found[0]:,}"


def _open(path: Path, packed: bool) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if packed else path.open("rb")


def _detect_utf16(head: bytes) -> str:
    """Detect UTF-16 without a byte order mark: every other byte is 0."""
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


def _detect_western(path: Path, packed: bool) -> str:
    """Return Windows-1252, unless it leaves some bytes undefined."""
    with _open(path, packed) as stream:
        while block := stream.read(_BLOCK):
            if any(byte in block for byte in b"\x81\x8d\x8f\x90\x9d"):
                return "latin-1"
    return "cp1252"
