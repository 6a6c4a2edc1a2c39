"""The detected format of a column, and parsing of its cells in that format."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import polars as pl

from flywheel_ml.core.contract import FLOAT_LIMIT, INTEGER_LIMIT, MISSING, Column, ColumnType, Parse
from flywheel_ml.core.parsing import MARKERS
from flywheel_ml.core.parsing.grammar import MIN_ZEROS, ZEROS
from flywheel_ml.core.parsing.series import clean_texts, parse_series, to_plain_characters

TOLERANCE = 0.01
"""Share of cells in a column of numbers or dates that may be something else; they become missing."""
MAJORITY = 0.5
"""Share of cells from which a column counts as mostly numbers or mostly dates."""
MIN_DISTINCT_NUMBERS = 20
MAX_WORDS = 5

Unclear = Literal["", "number", "date", "dates", "unit", "scale"]


class Detected(NamedTuple):
    """The contract type of a column, a description of how its cells are parsed, and the contract's parsing keys.

    `unclear` names what the table does not show: thousands or decimals (`number`), day or month first (`date`), the
    format of what looks like dates (`dates`), the one unit of numbers that have several (`unit`), or whether numbers
    with and without a percent sign are of one scale (`scale`). `na` is how markers such as NA among texts are read.
    """

    type: ColumnType
    description: str
    parse: Parse = Parse()
    time_zone: str = ""
    unit: str = ""
    unclear: Unclear = ""
    na: str = ""
    is_code: bool = False

    @property
    def column(self) -> Column:
        """A contract column that parses these cells."""
        return _build_column(self.type, self.parse, self.time_zone)

    @property
    def is_text(self) -> bool:
        """Whether the column is a text because nothing else fits."""
        return self.type == "string" and not self.is_code and not self.unclear

    def reads_like(self, other: "Detected") -> bool:
        """Whether both parse every cell alike."""
        return (self.type, self.parse, self.time_zone) == (other.type, other.parse, other.time_zone)

    def with_missing(self, texts: Collection[str]) -> "Detected":
        """Return a copy with further texts that mark missing values."""
        na_values = tuple(dict.fromkeys((*self.parse.na_values, *texts)))
        return self._replace(parse=self.parse.model_copy(update={"na_values": na_values}))


class Hints(NamedTuple):
    """Hints from the rest of the table for a column.

    `semicolons` separate its columns, `decimal` is the decimal sign of other columns (empty where none shows it, or
    they differ), `target` is the target's name, `quoted` are the columns in which NA is quoted, `keep_na` those
    in which it is a value because the user says so.
    """

    semicolons: bool = False
    decimal: str = ""
    target: str = ""
    quoted: Collection[str] = ()
    keep_na: Collection[str] = ()


TEXT = Detected("string", "text")
CODE = Detected("string", "digits beyond what a number holds exactly: a code", is_code=True)


def read_columns(frame: pl.DataFrame, plan: Mapping[str, Detected]) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """The columns that `plan` names in contract types, and by column which cells hold what cannot be read.

    Numbers that a model cannot distinguish from infinity or their neighbours, and reserved texts, are invalid.
    Columns without such cells are left out of the second part.
    """
    values, wrong = [], {}
    for name, detected in plan.items():
        column, odd = read_column(frame[name], detected)
        values.append(column)
        if odd.any():
            wrong[name] = odd
    return pl.DataFrame(values), wrong


def read_column(cells: pl.Series, detected: Detected) -> tuple[pl.Series, pl.Series]:
    """Parse one column, as `read_columns` does."""
    values, wrong = parse_series(cells, detected.column)
    if detected.type in ("float", "integer"):
        most = FLOAT_LIMIT if detected.type == "float" else INTEGER_LIMIT
        low, high = values.min(), values.max()
        is_within = low is None or (-most <= low and high <= most)  # type: ignore[operator]
        beyond = None if is_within else ~values.is_between(-most, most).fill_null(value=True)
    else:
        reserved = (values == MISSING).fill_null(value=False) if detected.type == "string" else None
        beyond = reserved if reserved is not None and reserved.any() else None
    if beyond is None:
        return values, wrong
    return pl.select(pl.when(~beyond).then(values)).to_series().rename(cells.name), wrong | beyond


@lru_cache(maxsize=1024)
def _build_column(kind: ColumnType, parse: Parse, time_zone: str = "") -> Column:
    return Column(name="cell", type=kind, time_zone=time_zone, parse=parse)


def find_fitting(held: pl.Series, kind: ColumnType, parse: Parse) -> pl.Series:
    """Find the cells that are values of a type when parsed this way, bool."""
    return parse_series(held, _build_column(kind, parse))[0].is_not_null()


def share_true(fits: pl.Series) -> float:
    """Share of true values."""
    return float(fits.sum()) / len(fits) if len(fits) else 0.0


def clean_present_texts(cells: pl.Series) -> pl.Series:
    """The non-missing texts of a column, stripped and with plain characters."""
    text = pl.col("text")
    zeros = (text.str.len_chars() >= MIN_ZEROS) & (text.str.strip_chars(ZEROS) == "")
    frame = to_plain_characters(clean_texts(cells.drop_nulls())).to_frame("text")
    return frame.filter(~text.str.to_lowercase().is_in(sorted(MARKERS)) & ~zeros).to_series().rename(cells.name)


def find_words(texts: pl.Series, fits: pl.Series) -> list[str]:
    """Find the few words that alone prevent a column of numbers or dates; empty if there is more than that."""
    strange = texts.filter(~fits)
    found = strange.unique(maintain_order=True)
    if share_true(fits) < MAJORITY or len(found) > MAX_WORDS or texts.filter(fits).n_unique() <= MIN_DISTINCT_NUMBERS:
        return []
    return [] if found.str.contains("[0-9]").any() else found.to_list()
