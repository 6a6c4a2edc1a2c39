"""A column of a frame, read as `parse_value` reads each of its cells."""

from datetime import datetime, timedelta

import polars as pl

from .. import timestamps
from ..contract import INTEGER_LIMIT, Column
from .grammar import FEWEST_ZEROS, MARKERS, TYPOGRAPHY, ZEROS, Grammar, grammar

DTYPES: dict[str, pl.DataType] = {
    "float": pl.Float64(),
    "integer": pl.Int64(),
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "datetime": pl.Datetime("us"),
}
_FIRST, _LAST = datetime.min, datetime.max
_NO_RULES = datetime(2099, 1, 1)
"""From the next year on Polars knows no summer time."""


def parse_series(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    """The values in the contract's type, null where missing, and which cells are none of that type, bool [n_rows].

    Cells that are wrong are null among the values too.
    """
    rules = grammar(column)
    wanted = DTYPES[rules.type]
    if series.dtype.is_float():
        finite = series.is_finite()
        series = series if finite.all() else _where(finite, series)
    absent = series.is_null()
    if isinstance(series.dtype, pl.Categorical | pl.Enum | pl.Time):
        series = series.cast(pl.String)
    if rules.type == "datetime" and rules.counts and series.dtype.is_numeric():
        series = _count_texts(series)
    if series.dtype == pl.String:
        values, absent = _of_texts(series, rules)
    else:
        typed = _of_typed(series, rules)
        values = pl.repeat(None, len(series), dtype=wanted, eager=True) if typed is None else typed
    if rules.sentinels:
        sentinel = values.is_in(pl.Series(list(rules.sentinels), dtype=wanted).implode()).fill_null(value=False)
        values, absent = _where(~sentinel, values), absent | sentinel
    return values.rename(series.name), (values.is_null() & ~absent).rename(series.name)


def _of_typed(series: pl.Series, rules: Grammar) -> pl.Series | None:
    wanted, found = DTYPES[rules.type], series.dtype
    if found == wanted or (found.is_integer() and rules.type == "string"):
        return series.cast(wanted)
    if isinstance(found, pl.Datetime | pl.Date) and rules.type == "datetime":
        return _of_timestamps(series, rules)
    if isinstance(found, pl.Duration) and rules.type == "float":
        return series.dt.total_microseconds() / 1e6
    if found.is_numeric() and rules.type in ("float", "integer", "boolean"):
        cast = series.cast(wanted, strict=False)
        kept = _where(cast.cast(found, strict=False) == series, cast)
        # A float tells whole numbers apart only up to here.
        return _where(series.abs() <= INTEGER_LIMIT, kept) if rules.type == "integer" and found.is_float() else kept
    return None


def _of_timestamps(series: pl.Series, rules: Grammar) -> pl.Series:
    wanted = DTYPES["datetime"]
    if not isinstance(series.dtype, pl.Datetime) or series.dtype.time_zone is None:
        return series.cast(wanted)
    if rules.time_zone == timestamps.LOCAL:
        return series.dt.replace_time_zone(None).cast(wanted)
    return _to_zone(series.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(wanted), rules)


def _count_texts(series: pl.Series) -> pl.Series:
    if series.dtype.is_integer():
        return series.cast(pl.String)
    whole = series.cast(pl.Int64, strict=False)
    return pl.select(
        pl.when(whole.cast(pl.Float64) == series.cast(pl.Float64))
        .then(whole.cast(pl.String))
        .otherwise(series.cast(pl.String))
    ).to_series()


def _of_texts(series: pl.Series, rules: Grammar) -> tuple[pl.Series, pl.Series]:
    """The values, and which cells are missing."""
    text = clean(series)
    absent = _markers(text, rules)
    text = _where(~absent, text)
    if rules.type == "string":
        return text, absent
    values = _plainly(text, rules)
    # What needs another look is few, or the whole column in another country's way of writing.
    again = (values.is_null() & ~absent).arg_true()
    if len(again):
        rest = plain(text.gather(again))
        gone = _markers(rest, rules)
        read = _READERS[rules.type](_where(~gone, rest), rules)
        if rules.type == "float":
            infinite = read.is_infinite().fill_null(value=False)
            read, gone = _where(~infinite, read), gone | infinite
        values = values.scatter(again, read)
        absent = absent.scatter(again, gone)
    return values, absent


def clean(series: pl.Series) -> pl.Series:
    """Texts without surrounding blanks, in NFC."""
    text = series.str.strip_chars()
    is_ascii = text.str.len_bytes() == text.str.len_chars()
    return text if is_ascii.all() else text.str.normalize("NFC")


def plain(text: pl.Series) -> pl.Series:
    """Texts with plain spaces, hyphens and apostrophes."""
    for pattern, character in TYPOGRAPHY.items():
        text = text.str.replace_all(pattern, character)
    return text.str.strip_chars()


def _markers(text: pl.Series, rules: Grammar) -> pl.Series:
    if rules.type == "string":
        return text.is_null() | text.is_in(pl.Series(["", *rules.na_values]).implode())
    lower = text.str.to_lowercase()
    found = lower.is_in(pl.Series(sorted(MARKERS)).implode())
    if rules.type == "boolean":
        found &= ~lower.is_in(pl.Series(list(rules.booleans)).implode())
    if rules.type == "datetime":
        found |= (text.str.len_chars() >= FEWEST_ZEROS) & (text.str.strip_chars(ZEROS) == "")
    if rules.na_values:
        found |= text.is_in(pl.Series(list(rules.na_values)).implode())
    return text.is_null() | found.fill_null(value=True)


def _plainly(text: pl.Series, rules: Grammar) -> pl.Series:
    """What is read without regular expressions, the rest null."""
    if rules.type == "boolean":
        return text.str.to_lowercase().replace_strict(rules.booleans, default=None, return_dtype=pl.Boolean)
    if rules.type == "integer" and rules.decimal == ".":
        return text.cast(pl.Int64, strict=False)
    if rules.type == "float" and rules.decimal == ".":
        number = text.cast(pl.Float64, strict=False)
        return _where(number.is_finite(), number)
    return pl.repeat(None, len(text), dtype=DTYPES[rules.type], eager=True)


def _number_texts(text: pl.Series, rules: Grammar) -> pl.Series:
    part = text.str.extract_groups(rules.number).struct.unnest()
    signs = [pl.col(name).is_not_null() & (pl.col(name) != "") for name in ("before", "inner", "after")]
    bracketed, closed = (pl.col(name).is_not_null() & (pl.col(name) != "") for name in ("open", "close"))
    minus = bracketed | pl.any_horizontal(*(pl.col(name) == "-" for name in ("before", "inner", "after"))).fill_null(
        value=False
    )
    digits = pl.col("digits")
    if rules.thousands:
        digits = digits.str.replace_all(rules.thousands, "", literal=True)
    number = pl.when(minus).then(pl.lit("-")).otherwise(pl.lit("")) + digits.str.replace(
        rules.decimal, ".", literal=True
    )
    allowed = (pl.sum_horizontal(*signs, bracketed) <= 1) & (bracketed == closed)
    return part.select(pl.when(allowed).then(number)).to_series()


def _floats(text: pl.Series, rules: Grammar) -> pl.Series:
    return _number_texts(text, rules).cast(pl.Float64, strict=False)


def _integers(text: pl.Series, rules: Grammar) -> pl.Series:
    number = _number_texts(text, rules)
    # pandas writes an integer column that has gaps as 3.0.
    approximate = number.cast(pl.Float64, strict=False)
    whole = approximate.cast(pl.Int64, strict=False)
    exact = (whole.cast(pl.Float64) == approximate) & (approximate.abs() <= INTEGER_LIMIT)
    return pl.select(
        pl.when(number.str.contains("^-?[0-9]+$")).then(number.cast(pl.Int64, strict=False)).when(exact).then(whole)
    ).to_series()


def _booleans(text: pl.Series, rules: Grammar) -> pl.Series:
    return _plainly(text, rules)


def _datetimes(text: pl.Series, rules: Grammar) -> pl.Series:
    values = pl.repeat(None, len(text), dtype=DTYPES["datetime"], eager=True)
    todo = text.is_not_null().arg_true()
    for form in rules.formats:
        for pattern in form.patterns:
            if not len(todo):
                return values
            wall, offset = _stamps(text.gather(todo), form.name, pattern)
            fits = wall.is_not_null()
            local = _localised(wall, offset, rules)
            values = values.scatter(todo.filter(fits), local.filter(fits))
            todo = todo.filter(~fits)
    return values


def _stamps(text: pl.Series, name: str, pattern: str) -> tuple[pl.Series, pl.Series]:
    """Wall-clock times as written, null where the format does not fit, and their offsets in minutes."""
    part = text.str.extract_groups(pattern).struct.unnest()
    if "whole" in part.columns:
        return _counted(part, name)
    return _written(part)


def _written(part: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    def number(name: str, otherwise: int = 0) -> pl.Expr:
        if name not in part.columns:
            return pl.lit(otherwise, dtype=pl.Int64)
        return pl.col(name).cast(pl.Int64, strict=False).fill_null(otherwise)

    matched = pl.col("Y" if "Y" in part.columns else "y").is_not_null()
    year = number("Y") if "Y" in part.columns else number("y") + pl.when(number("y") >= 69).then(1900).otherwise(2000)
    month = (
        number("m")
        if "m" in part.columns
        else pl.col("b").str.slice(0, 3).str.to_lowercase().replace_strict(timestamps.MONTHS, default=None)
    )
    hour = number("H") if "H" in part.columns else number("I")
    valid = matched & (hour <= 23) & (number("M") <= 59) & (number("S") <= 59) & (year >= 1)
    if "p" in part.columns:
        valid &= hour.is_between(1, 12)
        hour = hour % 12 + pl.when(pl.col("p").str.to_lowercase() == "p").then(12).otherwise(0)
    fraction = (
        pl.col("f").fill_null("").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64)
        if "f" in part.columns
        else pl.lit(0)
    )
    date = pl.format("{}-{}-{}", year.cast(pl.String).str.zfill(4), _two(month), _two(number("d", 1)))
    day = date.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    offset = pl.lit(None, dtype=pl.Int64)
    if "z" in part.columns:
        zone = pl.col("z")
        digits = zone.str.slice(1).str.replace(":", "", literal=True).str.pad_end(4, "0")
        hours, minutes = (digits.str.slice(at, 2).cast(pl.Int64, strict=False) for at in (0, 2))
        numeric = zone.str.contains("^[-+]")
        offset = (
            pl.when(numeric)
            .then((hours * 60 + minutes) * pl.when(zone.str.starts_with("-")).then(-1).otherwise(1))
            .when(zone.is_not_null() & (zone != ""))
            .then(0)
        )
        valid &= ~numeric.fill_null(value=False) | ((hours <= 23) & (minutes <= 59))
    wall = day + pl.duration(hours=hour, minutes=number("M"), seconds=number("S"), microseconds=fraction)
    found = part.select(pl.when(valid).then(wall).alias("wall"), offset.alias("offset"))
    return found["wall"], found["offset"]


def _two(number: pl.Expr) -> pl.Expr:
    return number.cast(pl.String).str.zfill(2)


def _counted(part: pl.DataFrame, name: str) -> tuple[pl.Series, pl.Series]:
    sign = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    fraction = pl.col("fraction").fill_null("")
    if name == timestamps.EXCEL:
        days = pl.format("{}.{}0", "whole", fraction).cast(pl.Float64) * sign
        milliseconds = ((days - timestamps.EXCEL_EPOCH_DAYS) * 86_400_000 + 0.5).floor()
        microseconds = milliseconds.cast(pl.Int128, strict=False) * 1000
    else:
        unit = timestamps.EPOCH_NS[name]
        digits = len(str(unit)) - 1
        small = fraction.str.pad_end(digits, "0").str.slice(0, digits) + pl.lit("0" if not digits else "")
        nanoseconds = (pl.col("whole").cast(pl.Int128) * unit + small.cast(pl.Int128)) * sign
        microseconds = nanoseconds // 1000
    first, last = (int((end - timestamps.EPOCH) / timedelta(microseconds=1)) for end in (_FIRST, _LAST))
    allowed = pl.when(microseconds.is_between(first, last)).then(microseconds.cast(pl.Int64, strict=False))
    found = part.select(
        allowed.cast(pl.Datetime("us")).alias("wall"),
        pl.lit(None if name == timestamps.EXCEL else 0, dtype=pl.Int64).alias("offset"),
    )
    return found["wall"], found["offset"]


def _localised(wall: pl.Series, offset: pl.Series, rules: Grammar) -> pl.Series:
    """Wall-clock times of the declared zone from those of their own offsets (null where there is none)."""
    if rules.time_zone == timestamps.LOCAL or offset.null_count() == len(offset):
        return wall
    moments = pl.select(pl.lit(wall) - pl.duration(minutes=pl.lit(offset))).to_series()
    return pl.select(pl.when(offset.is_null()).then(wall).otherwise(_to_zone(moments, rules))).to_series()


def _to_zone(moments: pl.Series, rules: Grammar) -> pl.Series:
    """Timestamps in UTC as wall-clock times of the declared zone; null without one."""
    zone = rules.time_zone
    if not zone:
        return pl.repeat(None, len(moments), dtype=DTYPES["datetime"], eager=True)
    moments = _where(moments.is_between(_FIRST, _LAST), moments)
    fixed = timestamps.fixed_offset(zone)
    if fixed is not None:
        local = moments + timedelta(minutes=fixed)
    else:
        local = moments.dt.replace_time_zone("UTC").dt.convert_time_zone(zone).dt.replace_time_zone(None)
        if len(far := (moments >= _NO_RULES).arg_true()):
            local = local.scatter(far, [_far(moment, zone) for moment in moments.gather(far)])
    return _where(local.is_between(_FIRST, _LAST), local)


def _far(moment: datetime, zone: str) -> datetime | None:
    try:
        return timestamps.to_zone(timestamps.Stamp(moment, 0), zone)
    except ValueError:
        return None


def _where(kept: pl.Series, values: pl.Series) -> pl.Series:
    return pl.select(pl.when(kept).then(values)).to_series()


_READERS = {"float": _floats, "integer": _integers, "boolean": _booleans, "datetime": _datetimes}
