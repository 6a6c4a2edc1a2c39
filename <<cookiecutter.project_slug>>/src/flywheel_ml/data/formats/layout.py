"""Detects the layout of delimited text from its first lines: delimiter, header, and lines above it."""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_WORDS = {**DELIMITERS, " ": "spaces"}
_DECLARED = re.compile(r'"?sep=(.)"?[,;\t|]*\s*', re.IGNORECASE)
"""The first line that declares the delimiter for Excel."""
_NUMBER = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")
_SAMPLE = 300
_MAX_CELL = 2**26

Record = Sequence[str]


class Layout(NamedTuple):
    """Layout of delimited text.

    `above` counts the records before the header, blank ones included. `has_row_names` is true where the header names
    all columns but the first, as R writes it.
    """

    delimiter: str
    header: tuple[str, ...]
    above: int = 0
    has_row_names: bool = False

    @property
    def width(self) -> int:
        """Cells of a whole row."""
        return len(self.header) + self.has_row_names

    @property
    def delimiter_name(self) -> str:
        """The delimiter in words."""
        return _WORDS.get(self.delimiter, f"'{self.delimiter}'")


def find_layout(head: str, is_whole: bool) -> Layout:
    """Find the layout of a text from its first lines `head`; `is_whole` if that is all of it."""
    declared = _DECLARED.fullmatch(head.partition("\n")[0])
    candidates = [declared.group(1)] if declared else list(DELIMITERS)
    split = {delimiter: _read_records(head, delimiter, is_whole) for delimiter in candidates}
    delimiter = max(split, key=lambda one: _rate_fit(split[one][bool(declared) :]))
    found = _build_layout(delimiter, split[delimiter], int(bool(declared)))
    if found.width == 1 and not declared:
        # R's default, and old files: tried last, because spaces also separate words in a column of texts.
        records = _read_records(head, " ", is_whole)
        spaced = _build_layout(" ", records, 0)
        if spaced.width > 1 and not spaced.above and _rate_fit(records)[0]:
            return spaced
    return found


def build_reader(lines: Iterable[str], delimiter: str) -> "Reader":
    """Build a lenient reader of the records of a text."""
    csv.field_size_limit(_MAX_CELL)
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t")


def is_number(cell: str) -> bool:
    """Whether a cell of a file holds nothing but a number."""
    return _NUMBER.fullmatch(cell) is not None


def is_blank(record: Record) -> bool:
    """Whether no cell of a record holds anything; Ctrl-Z ends the files of DOS."""
    return not any(cell.strip(" \t\r\n\x1a") for cell in record)


def _read_records(head: str, delimiter: str, is_whole: bool) -> list[list[str]]:
    try:
        records = list(build_reader(io.StringIO(head, newline=""), delimiter))
    except csv.Error:
        # Not this delimiter: a cell exceeds the size limit.
        return [[head]]
    return records[: None if is_whole or len(records) == 1 else -1][:_SAMPLE]


def _rate_fit(records: Sequence[Record]) -> tuple[bool, bool, float, int]:
    """Rate how well records fit one table: most rows are equally wide, and so is the first line."""
    widths = [len(record) for record in records if not is_blank(record)]
    width = _find_usual_width(widths)
    if width < 2:
        return False, False, 0.0, 0
    share = widths.count(width) / len(widths)
    return share > 0.5, widths[0] >= width, share, width


def _find_usual_width(widths: Collection[int]) -> int:
    """The most frequent width beyond 1, the larger of two; 1 where there is none."""
    counts = Counter(width for width in widths if width > 1)
    return max(counts, key=lambda width: (counts[width], width), default=1)


def _build_layout(delimiter: str, records: Sequence[Record], first: int) -> Layout:
    filled = [at for at in range(first, len(records)) if not is_blank(records[at])]
    width = _find_usual_width([len(records[at]) for at in filled])
    above: list[Record] = []
    for place, at in enumerate(filled):
        record, below = records[at], [records[later] for later in filled[place + 1 :]]
        if len(record) == width - 1 and _names_all_but_the_first(record, below):
            return Layout(delimiter, tuple(record), at, has_row_names=any(row[-1].strip() for row in below))
        if len(record) >= width and not _is_title(record, below):
            if _holds_names(record) or all(len(title) == 1 for title in above):
                return Layout(delimiter, _drop_empty_end(record, width), at)
            # Lines of several cells above one with numbers are a header and rows that are too long.
            break
        above.append(record)
    at = filled[0] if filled else 0
    return Layout(delimiter, tuple(records[at]) if records else (), at)


def _is_title(record: Record, below: Sequence[Record]) -> bool:
    """Whether a line of full width is a title that a spreadsheet padded with empty cells."""
    filled = _count_filled(record)
    if not below or _count_filled(below[0]) <= filled:
        return False
    return filled * 2 < len(record) or (filled == 1 and _is_header(below[0], below[1:]))


def _names_all_but_the_first(record: Record, below: Sequence[Record]) -> bool:
    """Whether a line one cell short of all lines below is their header, as R writes it, or without a last delimiter."""
    if len(below) < 2 or len({len(row) for row in below}) > 1 or _is_header(below[0], below[1:]):
        return False
    if not any(row[-1].strip() for row in below):
        return True
    is_name = len({row[0] for row in below}) == len(below)
    return is_name and (len(record) > 1 or any(map(is_number, below[0])))


def _is_header(record: Record, below: Sequence[Record]) -> bool:
    """Whether a line holds names only, and one of them has numbers below it."""
    columns = zip(*below, strict=False)
    return _holds_names(record) and any(all(is_number(cell) for cell in cells if cell.strip()) for cells in columns)


def _holds_names(record: Record) -> bool:
    return not any(not cell.strip() or is_number(cell) for cell in record)


def _drop_empty_end(record: Record, width: int) -> tuple[str, ...]:
    names = list(record)
    while len(names) > width and not names[-1].strip():
        names.pop()
    return tuple(names)


def _count_filled(record: Record) -> int:
    return sum(bool(cell.strip()) for cell in record)
