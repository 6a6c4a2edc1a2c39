"""Detects how to parse a column from a sample of its cells."""

import polars as pl

from flywheel_ml.core.contract import INTEGER_LIMIT
from flywheel_ml.data.adoption.detection import dates, numbers, texts
from flywheel_ml.data.adoption.detection.detected import (
    CODE,
    TEXT,
    TOLERANCE,
    Detected,
    Hints,
    clean_present_texts,
    share_true,
)
from flywheel_ml.utils import timestamps


def guess_table(sample: pl.DataFrame, hints: Hints) -> tuple[dict[str, Detected | None], Hints]:
    """Detect how to parse each column of a sample (None for lists and bytes, which no contract type holds), and hints.

    If one column shows which sign is the decimal one, the same holds for the others.
    """
    written = {name: clean_present_texts(sample[name]) for name in sample.columns if sample[name].dtype == pl.String}
    shown = {sign for present in written.values() if (sign := numbers.find_decimal_sign(present))}
    if len(shown) == 1:
        hints = hints._replace(decimal=shown.pop())
    return {name: guess_column(sample[name], hints, written.get(name)) for name in sample.columns}, hints


def guess_column(cells: pl.Series, hints: Hints, present: pl.Series | None = None) -> Detected | None:
    """Detect how to parse a column from a sample of its cells; `present` are the non-missing ones, if known."""
    if cells.dtype != pl.String:
        return dates.detect_counted(cells) or _detect_code(cells) or _detect_native(cells.dtype)
    present = clean_present_texts(cells) if present is None else present
    if present.is_empty():
        return TEXT
    is_target = cells.name == hints.target
    found = _detect_boolean(present, is_target) or dates.detect_counted_texts(cells.name, present)
    found = found or numbers.detect(present, cells, hints)
    if found is None or found.unclear:
        found = dates.detect_written(present, is_target) or found
    return found or texts.detect(cells, hints)


def _detect_native(dtype: pl.DataType) -> Detected | None:
    found: Detected | None = None
    if dtype == pl.Boolean:
        found = Detected("boolean", "boolean")
    elif dtype.is_integer():
        found = Detected("integer", "integer")
    elif dtype.is_float() or dtype.is_decimal():
        found = Detected("float", "number")
    elif isinstance(dtype, pl.Datetime) and dtype.time_zone:
        zone = dtype.time_zone if timestamps.is_zone(dtype.time_zone) else "UTC"
        found = Detected("datetime", f"timestamp, time zone {zone}", time_zone=zone)
    elif isinstance(dtype, pl.Datetime | pl.Date):
        found = Detected("datetime", "timestamp")
    elif isinstance(dtype, pl.Duration):
        found = Detected("float", "duration in seconds", unit="s")
    elif isinstance(dtype, pl.Categorical | pl.Enum | pl.Time | pl.Null):
        found = TEXT
    return found


def _detect_code(cells: pl.Series) -> Detected | None:
    """Detect integers that float64 cannot distinguish, such as the ids of some systems, unless they are rare."""
    present = cells.drop_nulls()
    if not present.dtype.is_integer() or present.is_empty():
        return None
    exact = present.cast(pl.Int128).is_between(-INTEGER_LIMIT, INTEGER_LIMIT)
    return None if share_true(exact) >= 1 - TOLERANCE else CODE


_PAIRS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})


def _detect_boolean(present: pl.Series, is_target: bool) -> Detected | None:
    found = set(present.str.to_lowercase().unique().head(10))
    # A target's labels keep the user's own words.
    if found not in _PAIRS[: 1 if is_target else None] and not found <= _PAIRS[0]:
        return None
    spelt = {word.lower(): word for word in sorted(present.unique(), reverse=True)}
    return Detected("boolean", f"boolean ({' or '.join(spelt[word] for word in sorted(spelt, reverse=True))})")
