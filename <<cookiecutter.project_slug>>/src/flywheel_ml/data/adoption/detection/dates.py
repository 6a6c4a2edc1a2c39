"""Detects dates and times: formats, epochs, spreadsheet days, and their time zone."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cache
from itertools import product

import polars as pl

from flywheel_ml.core.contract import Column, Parse
from flywheel_ml.core.parsing.series import parse_series
from flywheel_ml.data.adoption.detection.detected import MAJORITY, TEXT, TOLERANCE, Detected, find_words, share_true
from flywheel_ml.data.adoption.name_heuristics import split_words
from flywheel_ml.utils import timestamps

_DAYS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y",
    "%m/%d/%y", "%d/%m/%y", "%d-%m-%y", "%m-%d-%y", "%y-%m-%d", "%y/%m/%d", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y",
    "%d %b %y", "%d/%b/%Y", "%d. %b %Y", "%b %d, %Y", "%b %d %Y", "%Y-%b-%d", "%Y %b %d", "%a, %d %b %Y",
    "%a %d %b %Y", "%a, %b %d, %Y", "%a %b %d %Y",
)  # fmt: skip
_MONTHS = ("%b %Y", "%b-%Y", "%b-%y", "%b %y", "%Y-%m", "%Y/%m", "%m/%Y", "%m-%Y", "%m.%Y", "%Y %b", "%Y-%b")
_CLOCKS = (
    "%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%I:%M:%S%p", "%I:%M:%S.%f %p"
)  # fmt: skip
_WHOLE = ("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %z %Y", "%d/%b/%Y:%H:%M:%S %z", "%d/%b/%Y:%H:%M:%S")
_ZONE = (
    r"(?::[0-9]{2}(?:[.,][0-9]+)?(?: ?[AaPp]\.?[Mm]\.?)?|[0-9]{8}T[0-9]{4}(?:[0-9]{2})?)"
    r" *(Z|z|UTC|GMT|[-+][0-9]{2}(?::?[0-9]{2})?)(?: [0-9]{4})?$"
)
_MONTH_NAMES = "(?i)(?:jan|feb|mar|apr|may|mai|jun|jul|aug|sep|okt|oct|nov|dec|dez)"
_LIKE_DATES = (
    r"\b(?:19|20)[0-9]{2}[-/. ]?(?:[Qq][1-4]|[WwKk]{1,2}[0-9]{1,2}|[-/.][0-9]{1,2})"
    r"|\b[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{2}|[0-9]{4})\b"
    rf"|\b[0-9]{{1,2}}[-. /]{{1,2}}{_MONTH_NAMES}|{_MONTH_NAMES}\w*[-. /]{{1,2}}[0-9]{{2,4}}\b"
)
_EARLIEST = datetime(1000, 1, 1)
"""01/02/20 is not of the year 20."""
_MAX_FORMATS, _MAX_SHAPES, _MAX_CHARACTERS = 4, 40, 60
_SURE_ROWS, _FORWARD, _BACKWARD = 50, 0.01, 0.1
"""From this number of rows on, it is evidence that only one order of day and month is chronological."""

_EPOCH_FROM, _EPOCH_TO = 473_385_600, 4_102_444_800
"""1985 and 2100, in seconds."""
_RECENT = (946_684_800, 2_051_222_400)
"""2000 and 2035, in seconds."""
_EXCEL_FROM, _EXCEL_TO = 20_000, 60_000
"""1954 and 2064, in days."""
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_MIN_COMPACT = 20
_DATES = frozenset(("date", "day", "dt", "datum", "fecha", "dob"))
_TIMES = frozenset(
    ("timestamp", "stamp", "ts", "epoch", "unix", "unixtime", "time", "at", "when", "created", "updated", "modified",
     "start", "end", "seen", "date", "datetime", "dt", "logged", "ordered", "started", "ended")
)  # fmt: skip
_MONTH_WORDS = frozenset(("month", "period", "yearmonth", "ym", "yyyymm", "monat"))

ZONES = (
    "Europe/London", "Europe/Berlin", "Europe/Athens", "Europe/Moscow", "Europe/Istanbul", "America/St_Johns",
    "America/Halifax", "America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles",
    "America/Anchorage", "America/Mexico_City", "America/Santiago", "America/Sao_Paulo",
    "Asia/Jerusalem", "Asia/Tehran", "Africa/Cairo", "Africa/Casablanca", "Australia/Sydney",
    "Australia/Adelaide", "Pacific/Auckland",
)  # fmt: skip
"""A zone for each set of rules that moves the clock; others with the same rules read the same."""


def detect_counted(cells: pl.Series) -> Detected | None:
    """Detect numbers that are dates by name and value: 20200131, 202001, an epoch, or spreadsheet days."""
    present = cells.drop_nulls()
    if not (present.dtype.is_integer() or present.dtype.is_float()) or present.is_empty():
        return None
    if present.dtype.is_float():
        present = present.filter(present.is_finite())
    low, high = present.min(), present.max()
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    for name, tolerance in _count_formats(set(split_words(cells.name)), low, high, present.n_unique()):
        zone = "UTC" if name in timestamps.EPOCH_NS else ""
        found = Detected(
            "datetime", f"date written {describe_format(name)}", Parse(date_formats=(name,)), time_zone=zone
        )
        if share_true(parse_series(present, found.column)[0].is_not_null()) >= 1 - tolerance:
            return found
    return None


def _count_formats(named: set[str], low: float, high: float, distinct: int) -> Iterator[tuple[str, float]]:
    """Formats that numbers between two ends may have, and the share of them that need not fit."""
    for digits, name in _COMPACT.items():
        scale = 10 ** (digits - 8)
        is_day = 1900_01_01 * scale <= low and high <= 2100_12_31 * scale + scale - 1
        # By chance one in thirty numbers of eight digits is a date.
        if is_day and (distinct >= _MIN_COMPACT or named & _DATES):
            yield name, TOLERANCE if named & _DATES else 0.0
    if named & _MONTH_WORDS and low >= 1900_01 and high <= 2100_12:
        yield "%Y%m", TOLERANCE
    if named & _DATES and low >= _EXCEL_FROM and high <= _EXCEL_TO:
        yield timestamps.EXCEL, TOLERANCE
    if named & _TIMES:
        for unit in timestamps.EPOCH_NS:
            if _is_epoch(unit, low, high, (_EPOCH_FROM, _EPOCH_TO)):
                yield unit, TOLERANCE


def detect_counted_texts(name: str, texts: pl.Series) -> Detected | None:
    """Detect dates as `detect_counted` does, in texts."""
    numbers = texts.cast(pl.Int64, strict=False)
    if share_true(numbers.is_not_null()) < 1 - TOLERANCE:
        numbers = texts.cast(pl.Float64, strict=False)
    return detect_counted(numbers.rename(name)) if share_true(numbers.is_not_null()) >= 1 - TOLERANCE else None


def find_epoch_unit(low: float, high: float) -> str:
    """Find the unit in which numbers would be timestamps of this century; empty if there is none."""
    units = list(timestamps.EPOCH_NS)[1:]
    return next((unit for unit in units if _is_epoch(unit, low, high, _RECENT)), "")


def _is_epoch(unit: str, low: float, high: float, span: tuple[int, int]) -> bool:
    factor = 1_000_000_000 // timestamps.EPOCH_NS[unit]
    return low >= span[0] * factor and high <= span[1] * factor


def detect_written(texts: pl.Series, is_target: bool) -> Detected | None:
    """Detect how to parse a column of dates; an `unclear` text if it only looks like dates; None for anything else."""
    some = texts.head(1000)
    if share_true(some.str.contains(r"[0-9].*[-/.: T].*[0-9]|" + _MONTH_NAMES + "|" + _LIKE_DATES)) < MAJORITY:
        return None
    if int(some.str.len_chars().quantile(0.9) or 0) > _MAX_CHARACTERS:
        return None
    fits = _find_fitting(texts, (timestamps.ISO,))
    formats: list[str] = []
    unclear = False
    if share_true(fits) < 1 - TOLERANCE:
        formats, unclear = _choose_formats(texts, fits)
        fits = _find_fitting(texts, formats) if formats else fits
    gone: list[str] = []
    if share_true(fits) < 1 - TOLERANCE and not is_target:
        gone = find_words(texts, fits)
    if share_true(fits) < 1 - TOLERANCE and not gone:
        looks = share_true(some.str.contains(_LIKE_DATES)) >= MAJORITY
        return TEXT._replace(description="looks like dates in no known format", unclear="dates") if looks else None
    iso = share_true(_find_fitting(texts, (timestamps.ISO,))) > 0 and bool(formats)
    names = ([timestamps.ISO] if iso else []) + formats
    zone = _detect_zone(texts.filter(fits), formats)
    about = f"date written {' or '.join(describe_format(name) for name in names or [timestamps.ISO])}"
    about += f", time zone {zone}" if zone else ""
    found = Detected(
        "datetime", about, Parse(date_formats=tuple(formats)), time_zone=zone, unclear="date" if unclear else ""
    )
    return found.with_missing(gone)._replace(description=f"{about}, {', '.join(gone)} missing") if gone else found


def describe_format(name: str) -> str:
    """Describe a date format in words."""
    return {
        timestamps.ISO: "ISO 8601",
        timestamps.EXCEL: "as days of a spreadsheet",
        **{unit: f"in {unit.removeprefix('epoch_')} since 1970" for unit in timestamps.EPOCH_NS},
    }.get(name, name)


def _find_fitting(texts: pl.Series, formats: Iterable[str]) -> pl.Series:
    values, _ = parse_series(texts, _build_local_column(formats))
    return (values >= _EARLIEST).fill_null(value=False)


def _build_local_column(formats: Iterable[str]) -> Column:
    return Column(name="cell", type="datetime", time_zone=timestamps.LOCAL, parse=Parse(date_formats=tuple(formats)))


def _choose_formats(texts: pl.Series, iso: pl.Series) -> tuple[list[str], bool]:
    """The formats that together fit most of what is not in ISO 8601, and whether others would do as well."""
    chosen: list[str] = []
    unclear = False
    rest = texts.filter(~iso)
    while len(rest) > TOLERANCE * len(texts) and len(chosen) < _MAX_FORMATS:
        counts = {
            name: int(_find_fitting(rest, (name,)).sum())
            for name in _list_candidates(rest)
            if not any(_are_contradictory(name, other) for other in chosen)
        }
        most = max(counts.values(), default=0)
        if most < TOLERANCE * len(texts):
            break
        equal = [name for name, count in counts.items() if count >= (1 - TOLERANCE) * most]
        name, sure = _choose_forward(texts, chosen, equal)
        unclear = unclear or not sure
        chosen.append(name)
        rest = rest.filter(~_find_fitting(rest, (name,)))
    return chosen, unclear


def _choose_forward(texts: pl.Series, chosen: list[str], names: list[str]) -> tuple[str, bool]:
    """Choose, from formats that fit equally well, the one with the fewest steps backwards, and whether it is sure."""
    if len(names) == 1:
        return names[0], True
    backwards = []
    for at, name in enumerate(names):
        values = parse_series(texts, _build_local_column([*chosen, name]))[0].drop_nulls()
        backwards.append((int((values.diff().dt.total_microseconds() < 0).sum()), at))
    (least, at), (second, _) = sorted(backwards)[:2]
    rows = len(texts)
    sure = rows >= _SURE_ROWS and least <= _FORWARD * rows and second >= _BACKWARD * rows
    alike = not any(_are_contradictory(names[at], name) for name in names)
    return names[at], sure or alike


def _are_contradictory(one: str, other: str) -> bool:
    """Whether two formats read the numbers of one text differently."""
    return one != other and _mask_order(one) == _mask_order(other)


def _mask_order(name: str) -> str:
    for directive in ("%d", "%m", "%y"):
        name = name.replace(directive, "%N")
    return name


def _list_candidates(texts: pl.Series) -> list[str]:
    """The formats that fit a cell of some shape that occurs."""
    shapes = texts.str.replace_all("[0-9]+", "9").str.replace_all("[A-Za-z]+", "a")
    cells = pl.DataFrame({"shape": shapes, "text": texts}).group_by("shape", maintain_order=True)
    found = cells.agg(pl.len().alias("rows"), pl.col("text").first()).sort("rows", descending=True, maintain_order=True)
    likely = [
        (text, name) for text in found["text"].head(_MAX_SHAPES) for name in _formats_by_shape().get(_shape(text), ())
    ]
    return list(
        dict.fromkeys(name for text, name in likely if timestamps.matches_format(text, timestamps.compile_format(name)))
    )


@cache
def _formats_by_shape() -> dict[str, list[str]]:
    """The known formats by the shape of what they write: there are too many of them to try each."""
    clocks = ["", *(glue + clock + zone for glue, clock, zone in product((" ", ", ", "T"), _CLOCKS, ("", " %z", "%z")))]
    found: dict[str, list[str]] = {}
    for name in (*(day + clock for day in _DAYS for clock in clocks), *_MONTHS, *_WHOLE):
        plain = re.sub("%[bap]", "a", re.sub("%[YymdHIMSf]", "9", name))
        for zone in ("Z", "+9", "+9:9") if "%z" in plain else ("",):
            found.setdefault(_shape(plain.replace("%z", zone)), []).append(name)
    return found


def _shape(text: str) -> str:
    """Digits as 9, words as `a`, offsets as if they were ahead of UTC."""
    shape = re.sub("[A-Za-z]+", "a", re.sub("[0-9]+", "9", re.sub(r"(?i)\b([ap])\.m\.", r"\1m", text)))
    day, colon, rest = " ".join(shape.replace("a.", "a").split()).partition(":")
    return day + colon + rest.replace("-", "+")


def _detect_zone(texts: pl.Series, formats: list[str]) -> str:
    """The time zone whose rules explain the offsets of timestamps; empty where there are none."""
    offsets = texts.str.extract(_ZONE, 1)
    if offsets.null_count() == len(offsets):
        return ""
    minutes = {text: timestamps.offset_minutes(text) for text in offsets.drop_nulls().unique()}
    distinct = set(minutes.values())
    if len(distinct) == 1:
        (only,) = distinct
        return "UTC" if not only else f"{'-' if only < 0 else '+'}{abs(only) // 60:02d}:{abs(only) % 60:02d}"
    walls = parse_series(texts, _build_local_column(formats))[0]
    shifts = offsets.replace_strict(minutes, default=None, return_dtype=pl.Int64)
    table = pl.DataFrame({"wall": walls, "shift": shifts}).drop_nulls().unique()
    utc = table.select((pl.col("wall") - pl.duration(minutes="shift")).dt.replace_time_zone("UTC")).to_series()
    explained = [
        zone for zone in ZONES if (utc.dt.convert_time_zone(zone).dt.replace_time_zone(None) == table["wall"]).all()
    ]
    return explained[0] if len(explained) == 1 else timestamps.LOCAL
