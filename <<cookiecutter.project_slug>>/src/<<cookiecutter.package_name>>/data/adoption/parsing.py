"""How the cells of a column are read: from what a file holds to the contract's types.

A `Parse` is told once from a sample and then applied by `read` to every row. What it cannot read becomes missing;
`present` tells such a misfit from a cell that was empty to begin with.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import polars as pl

from ...contract import FLOAT_LIMIT, INTEGER_LIMIT, MISSING, ColumnType
from .. import tables
from .words import words

TOLERANCE = 0.01
"""Share of cells that may be no number, or no date, in a column of numbers or dates; they become missing."""

STRAY = 0.1
"""Share of cells up to which a column of texts is taken for one of numbers that somebody should mend."""

Unclear = Literal["", "number", "date"]


Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


class Parse(NamedTuple):
    """The contract type of a column, in words how its cells are read, and the expression that begins to do it.

    What `make` gives is not to be used as it is: `read` also leaves out what no contract allows.
    """

    type: ColumnType
    told: str
    make: Callable[[pl.Expr], pl.Expr]
    unit: str = ""
    unclear: Unclear = ""

    def same(self, other: "Parse") -> bool:
        """Whether both read every cell alike."""
        return (self.type, self.told) == (other.type, other.told)


def read(frame: Frame, parses: Mapping[str, Parse]) -> Frame:
    """The columns that `parses` names, in contract types.

    Missing are infinities, numbers beyond float32, integers that float64 cannot tell apart, empty and reserved texts.
    """
    # Two steps: in one expression Polars would parse a cell for each time it is mentioned.
    made = frame.select(parse.make(pl.col(name)).alias(name) for name, parse in parses.items())
    return made.with_columns(_allowed(pl.col(name), parse.type) for name, parse in parses.items())


def read_one(cells: pl.Series, parse: Parse) -> pl.Series:
    """As `read`, for one column."""
    return read(cells.to_frame(), {cells.name: parse}).to_series()


def _allowed(value: pl.Expr, kind: ColumnType) -> pl.Expr:
    if kind == "float":
        return pl.when(value.is_between(-FLOAT_LIMIT, FLOAT_LIMIT)).then(value)
    if kind == "integer":
        return pl.when(value.is_between(-INTEGER_LIMIT, INTEGER_LIMIT)).then(value)
    return pl.when(~value.is_in(["", MISSING])).then(value) if kind == "string" else value


def present(cell: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Whether a cell holds anything: no null, no NaN, and in texts none of the words for missing."""
    if dtype == pl.String:
        return cell.is_not_null() & ~_clean(cell).str.to_lowercase().is_in(tables.ABSENT)
    return cell.is_not_null() & cell.is_not_nan() if dtype.is_float() else cell.is_not_null()


class Hints(NamedTuple):
    """What the rest of the table says of a column: semicolons part it, commas are decimal in it, its target's name."""

    semicolons: bool = False
    continental: bool = False
    target: str = ""


def guess_all(sample: pl.DataFrame, hints: Hints) -> tuple[dict[str, Parse | None], Hints]:
    """How each column of a sample is to be read (None for what no contract type can hold: lists, bytes), and hints.

    Where one column can only be read with decimal commas, what could be either counts as one in the others too.
    """
    found = {name: guess(sample[name], hints) for name in sample.columns}
    if any(parse is not None and parse.told.startswith(_COMMA.told) for parse in found.values()):
        hints = hints._replace(semicolons=True, continental=True)
        found |= {name: guess(sample[name], hints) for name in sample.columns if sample[name].dtype == pl.String}
    return found, hints


def guess(cells: pl.Series, hints: Hints) -> Parse | None:
    """How a column is to be read, from a sample of its cells."""
    if cells.dtype != pl.String:
        return _dated_integer(cells) or _code(cells) or _native(cells.dtype)
    held = pl.select(_clean(pl.lit(cells)).filter(present(pl.lit(cells), cells.dtype))).to_series().rename(cells.name)
    if held.is_empty():
        return TEXT
    number = _number(held, cells, hints)
    if number is not None and number.type == "integer":
        return _dated_text(number, cells) or number
    return _boolean(held, is_target=cells.name == hints.target) or number or _moment(held) or TEXT


def _clean(cell: pl.Expr) -> pl.Expr:
    return cell.str.strip_chars()


TEXT = Parse("string", "text", _clean)
_CODE = TEXT._replace(told="digits beyond what a number holds exactly: a code")


def _native(dtype: pl.DataType) -> Parse | None:
    found: Parse | None = None
    if dtype == pl.Boolean:
        found = Parse("boolean", "boolean", lambda cell: cell)
    elif dtype.is_integer():
        found = Parse("integer", "integer", lambda cell: cell.cast(pl.Int64, strict=False))
    elif dtype.is_float() or dtype.is_decimal():
        found = Parse("float", "number", lambda cell: cell.cast(pl.Float64))
    elif isinstance(dtype, pl.Datetime) and dtype.time_zone:
        found = Parse("datetime", f"moment, from {dtype.time_zone} to UTC", _to_utc)
    elif isinstance(dtype, pl.Datetime | pl.Date):
        found = Parse("datetime", "moment", lambda cell: cell.cast(pl.Datetime("us")))
    elif isinstance(dtype, pl.Duration):
        found = Parse("float", "duration in seconds", lambda cell: cell.dt.total_microseconds() / 1e6, unit="s")
    elif isinstance(dtype, pl.Categorical | pl.Enum | pl.Time | pl.Null):
        found = Parse("string", "text", lambda cell: _clean(cell.cast(pl.String)))
    return found


def _code(cells: pl.Series) -> Parse | None:
    """Integers that float64 cannot tell apart, as the ids of some systems are, unless they are the odd cell."""
    held = cells.drop_nulls()
    if not held.dtype.is_integer() or held.is_empty():
        return None
    if _share(held.cast(pl.Int128).is_between(-INTEGER_LIMIT, INTEGER_LIMIT)) >= 1 - TOLERANCE:
        return None
    return _CODE._replace(make=lambda cell: cell.cast(pl.String))


def _to_utc(cell: pl.Expr) -> pl.Expr:
    return cell.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("us"))


_PAIRS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})


def _boolean(held: pl.Series, is_target: bool) -> Parse | None:
    found = set(held.str.to_lowercase().unique().head(10))
    # A target's labels stay in the person's own words.
    if found not in _PAIRS[: 1 if is_target else None] and not found <= _PAIRS[0]:
        return None
    spelt = {word.lower(): word for word in sorted(held.unique(), reverse=True)}
    told = " or ".join(spelt[word] for word in sorted(spelt, reverse=True))

    def make(cell: pl.Expr) -> pl.Expr:
        return _clean(cell).str.to_lowercase().replace_strict(tables.BOOLEANS, default=None, return_dtype=pl.Boolean)

    return Parse("boolean", f"boolean ({told})", make)


class _Style(NamedTuple):
    told: str
    pattern: str
    decimal: str = "."
    thousands: str = ""


_PLAIN = _Style("number", r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
_COMMA = _Style("decimal comma", r"^[-+]?(\d+,?\d*|,\d+)([eE][-+]?\d+)?$", ",")
_EURO = _Style("decimal comma, point for thousands", r"^[-+]?\d{1,3}(\.\d{3})*(,\d+)?$", ",", "[.]")
_ENGLISH = _Style("comma for thousands", r"^[-+]?\d{1,3}(,\d{3})*(\.\d+)?$", ".", ",")
_SPACED = _Style("space for thousands", "^[-+]?\\d{1,3}([ \u00a0\u202f']\\d{3})*([.,]\\d+)?$", ",", "[ \u00a0\u202f']")
_SIGNS = "%$€£¥"
_DIGITS = 15
"""An integer of as many digits is exact as float64."""


def _number(held: pl.Series, cells: pl.Series, hints: Hints) -> Parse | None:
    sign = next((sign for sign in _SIGNS if sign in held[0] and held.str.contains(sign, literal=True).all()), "")
    bare = held.str.replace(sign, "", literal=True).str.strip_chars() if sign else held
    style = _style(bare, hints)
    if style is None:
        return None
    if style is _AMBIGUOUS:
        return TEXT._replace(told=style.told, unclear="number")
    if bare.str.contains(r"^0\d+$").any():
        return TEXT._replace(told="digits with leading zeros: a code, not a number")
    rows, spaced = len(cells), bool(cells.str.contains(r"^\s|\s$").any())
    told = ", ".join([style.told, *([f"without {sign}"] if sign else []), *(["spaces around"] if spaced else [])])
    number = Parse("float", told, _reader(style, sign, spaced), unit=sign)
    whole = bare.str.contains(r"^[-+]?\d+$" if not style.thousands else rf"^[-+]?\d+({style.thousands}\d{{3}})*$")
    if not sign and (whole | ~bare.str.contains(style.pattern)).all():
        number = _integer(bare, number, plain=style is _PLAIN and not spaced)
    elif not sign and rows > len(held) and bare.str.contains(r"^[-+]?\d+\.0*$").all():
        # pandas writes an integer column that has gaps as 3.0.
        number = Parse("integer", f"{told}, written 3.0", partial(_exact, number))
    return number


def _integer(bare: pl.Series, number: Parse, plain: bool) -> Parse:
    if bare.str.len_chars().max() > _DIGITS and (read_one(bare, number).abs() > INTEGER_LIMIT).any():  # type: ignore[operator]
        return _CODE
    if plain:
        return Parse("integer", number.told, lambda cell: cell.cast(pl.Int64, strict=False))
    return Parse("integer", number.told, lambda cell: number.make(cell).cast(pl.Int64, strict=False))


_AMBIGUOUS = _Style("1,234 may be a thousand or one and a bit", "")


def _style(bare: pl.Series, hints: Hints) -> _Style | None:
    def fits(style: _Style) -> bool:
        return _share(bare.str.contains(style.pattern)) >= 1 - TOLERANCE

    if fits(_PLAIN):
        grouped = hints.continental and fits(_EURO) and bare.str.contains(".", literal=True).any()
        return _EURO if grouped else _PLAIN
    if fits(_COMMA):
        if not fits(_ENGLISH) or hints.semicolons:
            return _COMMA
        return _AMBIGUOUS
    return next((style for style in (_ENGLISH, _EURO, _SPACED) if fits(style)), None)


def strays(texts: pl.Series) -> pl.Series:
    """The texts that alone keep a column from being one of numbers; empty where they are more than a few."""
    held = texts.filter(pl.select(present(pl.lit(texts), texts.dtype)).to_series())
    odd = min((held.filter(~held.str.contains(style.pattern)) for style in (_PLAIN, _COMMA, _ENGLISH)), key=len)
    return odd if len(odd) <= STRAY * len(held) else odd.clear()


def _share(fitting: pl.Series) -> float:
    return float(fitting.sum()) / len(fitting)


def _reader(style: _Style, sign: str, spaced: bool) -> Callable[[pl.Expr], pl.Expr]:
    def number(cell: pl.Expr) -> pl.Expr:
        text = _stripped(cell, spaced)
        if sign:
            text = text.str.replace(sign, "", literal=True).str.strip_chars()
        if style.thousands:
            text = text.str.replace_all(style.thousands, "")
        if style.decimal == ",":
            text = text.str.replace(",", ".", literal=True)
        return text.cast(pl.Float64, strict=False)

    return number


def _stripped(cell: pl.Expr, spaced: bool) -> pl.Expr:
    return _clean(cell) if spaced else cell


def _exact(parse: Parse, cell: pl.Expr) -> pl.Expr:
    number = parse.make(cell)
    return pl.when(number % 1 == 0).then(number.cast(pl.Int64, strict=False))


_DAYS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y",
    "%m/%d/%y", "%d/%m/%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip
_EITHER = ("%d/%m/", "%m/%d/", "%d-%m-", "%m-%d-")
_TIMES = (" %H:%M:%S", " %H:%M", " %H:%M:%S%.f", "T%H:%M:%S", "T%H:%M", "T%H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
_ZONED = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
_EARLIEST = datetime(1000, 1, 1)
"""01/02/20 is not of the year 20."""


def _moment(held: pl.Series) -> Parse | None:
    some = held.head(1000)
    if _share(some.str.contains(r"\d.*[-/. T].*\d")) < 1 - TOLERANCE or some.str.len_chars().max() > 40:  # type: ignore[operator]
        return None
    fitting: list[tuple[int, int, Parse]] = []
    for written in _formats(some):
        parse = Parse("datetime", f"date written {written}", _moment_reader(written))
        if _share(read_one(some, parse) >= _EARLIEST) >= 1 - TOLERANCE:
            moments = read_one(held, parse)
            if _share(moments >= _EARLIEST) >= 1 - TOLERANCE:
                backwards = int((moments.diff().dt.total_microseconds() < 0).sum())
                fitting.append((backwards, len(fitting), parse))
                if not written.startswith(_EITHER):
                    break
    if not fitting:
        return None
    # 03/04/2020: the reading in which the rows run backwards less often.
    parse = min(fitting)[2]
    return parse if len(fitting) == 1 else parse._replace(unclear="date")


def _formats(some: pl.Series) -> Iterator[str]:
    if _share(some.str.contains(r":\d\d(\.\d+)?([+-]\d{2}:?\d{2}|Z)$")) >= 1 - TOLERANCE:
        yield from _ZONED
        return
    timed = _share(some.str.contains(r"\d:\d\d")) >= 1 - TOLERANCE
    for day in _DAYS:
        for time in _TIMES if timed else ("",):
            yield day + time


def _moment_reader(written: str) -> Callable[[pl.Expr], pl.Expr]:
    def moment(cell: pl.Expr) -> pl.Expr:
        text = _clean(cell)
        if ":" not in written:
            return text.str.to_date(written, strict=False).cast(pl.Datetime("us"))
        found = text.str.to_datetime(written, time_unit="us", strict=False)
        return _to_utc(found) if written in _ZONED else found

    return moment


_EPOCHS = {"s": 1_000_000, "ms": 1000}
_EPOCH_FROM, _EPOCH_TO = 473_385_600, 4_102_444_800
"""1985 and 2100, in seconds."""


def _dated_integer(cells: pl.Series) -> Parse | None:
    """Numbers that are dates by name and value: 20200131, or seconds since 1970."""
    if not cells.dtype.is_integer() or cells.null_count() == len(cells):
        return None
    named, low, high = set(words(cells.name)), cells.min(), cells.max()
    assert isinstance(low, int)
    assert isinstance(high, int)
    if named & {"date", "day", "dt", "datum"} and low >= 1900_01_01 and high <= 2100_12_31:
        day = _moment_reader("%Y%m%d")
        parse = Parse("datetime", "date written %Y%m%d", lambda cell: day(cell.cast(pl.String)))
        return parse if read_one(cells, parse).null_count() == cells.null_count() else None
    if named & {"timestamp", "ts", "epoch", "unix", "time"}:
        for unit, factor in _EPOCHS.items():
            if low >= _EPOCH_FROM * 1_000_000 // factor and high <= _EPOCH_TO * 1_000_000 // factor:
                return Parse("datetime", f"{unit} since 1970", partial(_since_1970, factor))
    return None


def _since_1970(factor: int, cell: pl.Expr) -> pl.Expr:
    return (cell.cast(pl.Int64) * factor).cast(pl.Datetime("us"))


def _dated_text(number: Parse, cells: pl.Series) -> Parse | None:
    dated = _dated_integer(read_one(cells, number))
    return dated and dated._replace(make=lambda cell: dated.make(number.make(cell)))
