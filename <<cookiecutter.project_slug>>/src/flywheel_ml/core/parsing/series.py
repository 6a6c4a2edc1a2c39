"""Parses a column of a frame exactly as `parse_value` parses each of its cells."""

from datetime import datetime, timedelta

import polars as pl

from flywheel_ml.core.contract import INTEGER_LIMIT, Column
from flywheel_ml.core.parsing.grammar import MARKERS, MIN_ZEROS, TYPOGRAPHY, ZEROS, Grammar, build_grammar
from flywheel_ml.utils import timestamps

DTYPES: dict[str, pl.DataType] = {
    "float": pl.Float64(),
    "integer": pl.Int64(),
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "datetime": pl.Datetime("us"),
}
_FIRST, _LAST = datetime.min, datetime.max
_MARKERS = sorted(MARKERS)
_FIRST_WITHOUT_RULES = datetime(2099, 1, 1)
"""Polars applies no daylight saving time after this year."""


def parse_series(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    """Return the values in the contract's type, null where missing, and which cells are invalid, bool [n_rows].

    Invalid cells are null among the values too.
    """
    rules = build_grammar(column)
    wanted = DTYPES[rules.type]
    if series.dtype.is_float() and not (finite := series.is_finite()).all():
        series = _keep_where(finite, series)
    absent = series.is_null()
    if isinstance(series.dtype, pl.Categorical | pl.Enum | pl.Time):
        series = series.cast(pl.String)
    if rules.type == "datetime" and rules.counts and series.dtype.is_numeric():
        series = _counts_to_text(series)
    if series.dtype == pl.String:
        values, absent = _parse_texts(series, rules)
    else:
        typed = _convert_typed(series, rules)
        values = pl.repeat(None, len(series), dtype=wanted, eager=True) if typed is None else typed
    if rules.type == "string":
        values, absent = _apply_categories(values, absent, rules)
    if rules.sentinels:
        sentinel = values.is_in(pl.Series(list(rules.sentinels), dtype=wanted).implode()).fill_null(value=False)
        values, absent = _keep_where(~sentinel, values), absent | sentinel
    return values.rename(series.name), (values.is_null() & ~absent).rename(series.name)


def _apply_categories(values: pl.Series, absent: pl.Series, rules: Grammar) -> tuple[pl.Series, pl.Series]:
    """Texts as categories have them, and which cells are missing."""
    text = pl.lit(values)
    if rules.code_width:
        code = text.str.contains("^[0-9]+$")
        text = pl.when(code).then(text.str.zfill(rules.code_width)).otherwise(text)
    if rules.missing_category is not None:
        text = pl.when(absent).then(pl.lit(rules.missing_category)).otherwise(text)
        absent = absent & False
    return pl.select(text).to_series(), absent


def _convert_typed(series: pl.Series, rules: Grammar) -> pl.Series | None:
    wanted, found = DTYPES[rules.type], series.dtype
    if found == wanted or (found.is_integer() and rules.type == "string"):
        return series.cast(wanted)
    if found.is_float() and rules.type == "string" and rules.code_width:
        whole = series.cast(pl.Int64, strict=False)
        return _keep_where((whole.cast(pl.Float64) == series) & (series.abs() <= INTEGER_LIMIT), whole.cast(wanted))
    if isinstance(found, pl.Datetime | pl.Date) and rules.type == "datetime":
        return _convert_timestamps(series, rules)
    if isinstance(found, pl.Duration) and rules.type == "float":
        return series.dt.total_microseconds() / 1e6
    if found.is_numeric() and rules.type in ("float", "integer", "boolean"):
        cast = series.cast(wanted, strict=False)
        kept = _keep_where(cast.cast(found, strict=False) == series, cast)
        # Beyond this limit a float cannot represent every integer.
        return (
            _keep_where(series.abs() <= INTEGER_LIMIT, kept) if rules.type == "integer" and found.is_float() else kept
        )
    return None


def _convert_timestamps(series: pl.Series, rules: Grammar) -> pl.Series:
    wanted = DTYPES["datetime"]
    if not isinstance(series.dtype, pl.Datetime) or series.dtype.time_zone is None:
        return series.cast(wanted)
    if rules.time_zone == timestamps.LOCAL:
        return series.dt.replace_time_zone(None).cast(wanted)
    return _to_zone(series.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(wanted), rules)


def _counts_to_text(series: pl.Series) -> pl.Series:
    if series.dtype.is_integer():
        return series.cast(pl.String)
    whole = series.cast(pl.Int64, strict=False)
    return pl.select(
        pl.when(whole.cast(pl.Float64) == series.cast(pl.Float64))
        .then(whole.cast(pl.String))
        .otherwise(series.cast(pl.String))
    ).to_series()


def _parse_texts(series: pl.Series, rules: Grammar) -> tuple[pl.Series, pl.Series]:
    """The values, and which cells are missing."""
    text, absent = pl.col("text"), _is_marker(rules)
    value = text if rules.type == "string" else _parse_without_regex(rules)
    frame = clean_texts(series).to_frame("text")
    frame = frame.select("text", absent.alias("absent"), pl.when(~absent).then(value).alias("value"))
    # Only few cells need a second pass, or the whole column in another locale.
    again = frame.select(pl.arg_where(pl.col("value").is_null() & ~pl.col("absent"))).to_series()
    if rules.type == "string" or again.is_empty():
        return frame["value"], frame["absent"]
    rest = to_plain_characters(frame["text"].gather(again)).to_frame("text")
    rest = rest.select(absent.alias("absent"), pl.when(~absent).then(text).alias("text"))
    read = _READERS[rules.type](rest["text"], rules).to_frame("value").with_columns(rest["absent"])
    if rules.type == "float":
        infinite = pl.col("value").is_infinite().fill_null(value=False)
        read = read.select(pl.when(~infinite).then("value").alias("value"), pl.col("absent") | infinite)
    return frame["value"].scatter(again, read["value"]), frame["absent"].scatter(again, read["absent"])


def clean_texts(series: pl.Series) -> pl.Series:
    """Strip surrounding blanks and normalise to NFC."""
    text = series.str.strip_chars()
    return text if _is_ascii(text) else text.str.normalize("NFC")


def to_plain_characters(text: pl.Series) -> pl.Series:
    """Replace typographic spaces, hyphens and apostrophes by plain ones."""
    if _is_ascii(text):
        return text
    for pattern, character in TYPOGRAPHY.items():
        text = text.str.replace_all(pattern, character)
    return text.str.strip_chars()


def _is_ascii(text: pl.Series) -> bool:
    every = pl.nth(0).str
    return bool(text.to_frame().select((every.len_bytes() == every.len_chars()).all()).item())


def _is_marker(rules: Grammar) -> pl.Expr:
    """`Grammar.is_marker` as an expression over the column `text`; null counts too."""
    text = pl.col("text")
    found = text.is_in(["", *rules.na_values])
    if rules.type != "string":
        lower = text.str.to_lowercase()
        usual = lower.is_in(_MARKERS)
        found |= usual & ~lower.is_in(list(rules.booleans)) if rules.type == "boolean" else usual
    if rules.type == "datetime":
        found |= (text.str.len_chars() >= MIN_ZEROS) & (text.str.strip_chars(ZEROS) == "")
    return found.fill_null(value=True)


def _parse_without_regex(rules: Grammar) -> pl.Expr:
    """Parse the column `text` without regular expressions; what needs them becomes null."""
    text = pl.col("text")
    if rules.type == "boolean":
        return text.str.to_lowercase().replace_strict(rules.booleans, default=None, return_dtype=pl.Boolean)
    if rules.type == "integer" and rules.decimal == ".":
        return text.cast(pl.Int64, strict=False)
    if rules.type == "float" and rules.decimal == ".":
        number = text.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number)
    if rules.type == "datetime" and rules.formats[0].name == timestamps.ISO:
        return _parse_canonical_timestamps(text)
    return pl.lit(None, dtype=DTYPES[rules.type])


def _parse_canonical_timestamps(text: pl.Expr) -> pl.Expr:
    """Parse the timestamps that Polars reads natively, which is several times as fast."""
    date = text.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).cast(DTYPES["datetime"])
    clock = text.str.slice(11).str.to_time("%H:%M:%S", strict=False).cast(pl.Duration("us"))
    is_clock = text.str.contains(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$")
    found = pl.when(text.str.contains("^[0-9]{4}-[0-9]{2}-[0-9]{2}$")).then(date).when(is_clock).then(date + clock)
    return pl.when(found >= _FIRST).then(found)


def _normalize_numbers(text: pl.Series, rules: Grammar) -> pl.Series:
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


def _parse_floats(text: pl.Series, rules: Grammar) -> pl.Series:
    return _normalize_numbers(text, rules).cast(pl.Float64, strict=False)


def _parse_integers(text: pl.Series, rules: Grammar) -> pl.Series:
    number = _normalize_numbers(text, rules)
    # pandas writes an integer column that has gaps as 3.0.
    approximate = number.cast(pl.Float64, strict=False)
    whole = approximate.cast(pl.Int64, strict=False)
    exact = (whole.cast(pl.Float64) == approximate) & (approximate.abs() <= INTEGER_LIMIT)
    return pl.select(
        pl.when(number.str.contains("^-?[0-9]+$")).then(number.cast(pl.Int64, strict=False)).when(exact).then(whole)
    ).to_series()


def _parse_booleans(text: pl.Series, rules: Grammar) -> pl.Series:
    return text.to_frame("text").select(_parse_without_regex(rules)).to_series()


def _parse_datetimes(text: pl.Series, rules: Grammar) -> pl.Series:
    values = pl.repeat(None, len(text), dtype=DTYPES["datetime"], eager=True)
    unread = text.is_not_null().arg_true()
    for form in rules.formats:
        for pattern in form.patterns:
            if not len(unread):
                return values
            wall, offset = _parse_wall_clock(text.gather(unread), form.name, pattern)
            fits = wall.is_not_null()
            local = _to_declared_zone(wall, offset, rules)
            values = values.scatter(unread.filter(fits), local.filter(fits))
            unread = unread.filter(~fits)
    return values


def _parse_wall_clock(text: pl.Series, name: str, pattern: str) -> tuple[pl.Series, pl.Series]:
    """Wall-clock times as written, null where the format does not fit, and their offsets in minutes."""
    part = text.str.extract_groups(pattern).struct.unnest()
    if "whole" in part.columns:
        return _parse_counted(part, name)
    return _parse_written(part)


def _parse_written(part: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
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
    date = pl.format("{}-{}-{}", year.cast(pl.String).str.zfill(4), _two_digits(month), _two_digits(number("d", 1)))
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


def _two_digits(number: pl.Expr) -> pl.Expr:
    return number.cast(pl.String).str.zfill(2)


def _parse_counted(part: pl.DataFrame, name: str) -> tuple[pl.Series, pl.Series]:
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


def _to_declared_zone(wall: pl.Series, offset: pl.Series, rules: Grammar) -> pl.Series:
    """Wall-clock times of the declared zone from those of their own offsets (null where there is none)."""
    if rules.time_zone == timestamps.LOCAL or offset.null_count() == len(offset):
        return wall
    instants = pl.select(pl.lit(wall) - pl.duration(minutes=pl.lit(offset))).to_series()
    return pl.select(pl.when(offset.is_null()).then(wall).otherwise(_to_zone(instants, rules))).to_series()


def _to_zone(instants: pl.Series, rules: Grammar) -> pl.Series:
    """Timestamps in UTC as wall-clock times of the declared zone; null without one."""
    zone = rules.time_zone
    if not zone:
        return pl.repeat(None, len(instants), dtype=DTYPES["datetime"], eager=True)
    instants = _keep_where(instants.is_between(_FIRST, _LAST), instants)
    fixed = timestamps.fixed_offset(zone)
    if fixed is not None:
        local = instants + timedelta(minutes=fixed)
    else:
        local = instants.dt.replace_time_zone("UTC").dt.convert_time_zone(zone).dt.replace_time_zone(None)
        if len(far := (instants >= _FIRST_WITHOUT_RULES).arg_true()):
            local = local.scatter(far, [_far_to_zone(instant, zone) for instant in instants.gather(far)])
    return _keep_where(local.is_between(_FIRST, _LAST), local)


def _far_to_zone(instant: datetime, zone: str) -> datetime | None:
    try:
        return timestamps.to_zone(timestamps.Timestamp(instant, 0), zone)
    except ValueError:
        return None


def _keep_where(kept: pl.Series, values: pl.Series) -> pl.Series:
    return pl.select(pl.when(kept).then(values)).to_series()


_READERS = {
    "float": _parse_floats,
    "integer": _parse_integers,
    "boolean": _parse_booleans,
    "datetime": _parse_datetimes,
}
