"""Parses timestamps in text: ISO 8601, strptime formats, epochs and spreadsheet days, with their time zone.

Each format is compiled to regular expressions whose named groups are the parts of a timestamp. Python's `re` and
Polars use the same expressions, so a single value and a whole column are read alike.
"""

import re
import zoneinfo
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import NamedTuple

from flywheel_ml.utils.config_model import suggest

ISO = "iso8601"
LOCAL = "local"
"""Time zone of wall-clock times: an offset is dropped."""

EPOCH_NS = {"epoch_s": 1_000_000_000, "epoch_ms": 1_000_000, "epoch_us": 1000, "epoch_ns": 1}
"""Nanoseconds per unit of each epoch format."""
EXCEL = "excel_days"
EXCEL_EPOCH_DAYS = 25_569
"""The spreadsheet serial number of 1970-01-01."""

NOT_A_TIMESTAMP = "must be an ISO 8601 date and time, such as 2013-06-15T08:30:00"
UNEXPECTED_OFFSET = (
    "must not have a UTC offset: the column declares no time zone; add `time_zone` to it in contract.yaml"
)

EPOCH = datetime(1970, 1, 1)
MONTHS = {
    month: at
    for at, month in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_MONTH = (
    "[Jj][Aa][Nn](?:[Uu][Aa][Rr][Yy])?|[Ff][Ee][Bb](?:[Rr][Uu][Aa][Rr][Yy])?|[Mm][Aa][Rr](?:[Cc][Hh])?"
    "|[Aa][Pp][Rr](?:[Ii][Ll])?|[Mm][Aa][Yy]|[Jj][Uu][Nn][Ee]?|[Jj][Uu][Ll][Yy]?|[Aa][Uu][Gg](?:[Uu][Ss][Tt])?"
    "|[Ss][Ee][Pp](?:[Tt](?:[Ee][Mm][Bb][Ee][Rr])?)?|[Oo][Cc][Tt](?:[Oo][Bb][Ee][Rr])?"
    "|[Nn][Oo][Vv](?:[Ee][Mm][Bb][Ee][Rr])?|[Dd][Ee][Cc](?:[Ee][Mm][Bb][Ee][Rr])?"
)
_ZONE = "[Zz]|UTC|GMT|[-+][0-9]{2}(?::?[0-9]{2})?"
_DIRECTIVES = {
    "Y": "(?P<Y>[0-9]{4})",
    "y": "(?P<y>[0-9]{2})",
    "m": "(?P<m>[0-9]{1,2})",
    "b": f"(?P<b>{_MONTH})\\.?",
    "B": f"(?P<b>{_MONTH})\\.?",
    "d": "(?P<d>[0-9]{1,2})",
    "H": "(?P<H>[0-9]{1,2})",
    "I": "(?P<I>[0-9]{1,2})",
    "M": "(?P<M>[0-9]{2})",
    "S": "(?P<S>[0-9]{2})",
    "f": "(?P<f>[0-9]{1,9})",
    "p": r"(?P<p>[AaPp])\.?[Mm]\.?",
    "z": f"(?P<z>{_ZONE})",
    "a": r"[A-Za-z]{2,9}\.?",
    "A": r"[A-Za-z]{2,9}\.?",
    "%": "%",
}
_ISO = (
    "^(?P<Y>[0-9]{4})-(?P<m>[0-9]{2})-(?P<d>[0-9]{2})(?:(?:[Tt]| +)(?P<H>[0-9]{2}):(?P<M>[0-9]{2})"
    f"(?::(?P<S>[0-9]{{2}})(?:[.,](?P<f>[0-9]{{1,9}}))?)?(?: *(?P<z>{_ZONE}))?)?$",
    "^(?P<Y>[0-9]{4})(?P<m>[0-9]{2})(?P<d>[0-9]{2})(?:[Tt](?P<H>[0-9]{2})(?P<M>[0-9]{2})"
    f"(?:(?P<S>[0-9]{{2}})(?:[.,](?P<f>[0-9]{{1,9}}))?)?(?P<z>{_ZONE})?)?$",
)
_CANONICAL = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ](?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:[.][0-9]{6})?)?")
"""Texts that `datetime.fromisoformat` can read, several times faster."""
_COUNT = "^(?P<sign>-)?(?P<whole>[0-9]{1,19})(?:[.](?P<fraction>[0-9]{1,30}))?$"
_FIXED = re.compile(r"([-+])([0-9]{2}):([0-9]{2})")


class Format(NamedTuple):
    """A timestamp format: its name, and expressions to try in order."""

    name: str
    patterns: tuple[str, ...]


class Timestamp(NamedTuple):
    """A timestamp as written, and its offset from UTC in minutes (None if it has none)."""

    wall: datetime
    offset: int | None


@lru_cache(maxsize=1024)
def compile_format(name: str) -> Format:
    """Compile a format: a strptime format, `iso8601`, `epoch_s` (or `_ms`, `_us`, `_ns`) or `excel_days`.

    Raises:
        ValueError: a directive is unknown, or the format leaves out the year or the month.
    """
    if name == ISO:
        return Format(name, _ISO)
    if name in EPOCH_NS or name == EXCEL:
        return Format(name, (_COUNT,))
    if "%" not in name:
        known = [ISO, *EPOCH_NS, EXCEL]
        raise ValueError(f"unknown date format '{name}'; write a strptime format, or one of {', '.join(known)}")
    pattern, used = _build_pattern(name)
    for directive in used:
        if used.count(directive) > 1 and directive in "YymbdHIMSfpz":
            raise ValueError(f"date format '{name}': %{directive} occurs twice")
    if not {"Y", "y"} & set(used) or not {"m", "b"} & set(used):
        raise ValueError(f"date format '{name}' needs a year and a month")
    if ("I" in used) != ("p" in used):
        raise ValueError(f"date format '{name}': %I and %p go together")
    return Format(name, (pattern,))


def parse(text: str, formats: tuple[Format, ...]) -> Timestamp | None:
    """Parse a text by the first format that fits; returns None if none fits."""
    if formats[0].patterns is _ISO and _CANONICAL.fullmatch(text):
        with suppress(ValueError):
            return Timestamp(datetime.fromisoformat(text), None)
    for form in formats:
        for pattern in form.patterns:
            found = _compile_regex(pattern).search(text)
            stamp = found and (_parse_number if pattern is _COUNT else _parse_calendar)(form.name, found.groupdict())
            if stamp:
                return stamp
    return None


def parse_isoformat(text: str) -> datetime | None:
    """Parse a text in the form of `datetime.isoformat` without an offset; returns None for any other text."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return None
    if len(text) == 19:  # Most have no fraction; `isoformat` would triple the time of this function.
        is_plain = text[4] == text[7] == "-" and text[10] == "T" and text[16] == ":"
    else:
        is_plain = value.tzinfo is None and value.isoformat() == text
    return value if is_plain else None


def parse_iso(text: str) -> datetime:
    """Parse an ISO 8601 text, with its offset if it has one.

    Raises:
        ValueError: the text is not a timestamp.
    """
    stamp = parse(text, (compile_format(ISO),))
    if stamp is None:
        raise ValueError(NOT_A_TIMESTAMP)
    if stamp.offset is None:
        return stamp.wall
    return stamp.wall.replace(tzinfo=timezone(timedelta(minutes=stamp.offset)))


def matches_format(text: str, form: Format) -> bool:
    """Whether a text has the parts of a format, even if they are not a valid date."""
    return any(_compile_regex(pattern).search(text) for pattern in form.patterns)


def to_zone(stamp: Timestamp, zone: str) -> datetime:
    """Convert a timestamp to wall-clock time in a zone; without an offset it is already in that zone.

    Raises:
        ValueError: the timestamp has an offset but no zone is declared, or is outside the years 1 to 9999.
    """
    if stamp.offset is None or zone == LOCAL:
        return stamp.wall
    if not zone:
        raise ValueError(UNEXPECTED_OFFSET)
    try:
        utc = stamp.wall - timedelta(minutes=stamp.offset)
        fixed = fixed_offset(zone)
        if fixed is not None:
            return utc + timedelta(minutes=fixed)
        return utc.replace(tzinfo=UTC).astimezone(zoneinfo.ZoneInfo(zone)).replace(tzinfo=None)
    except OverflowError:
        raise ValueError(NOT_A_TIMESTAMP) from None


def aware_to_zone(value: datetime, zone: str) -> datetime:
    """As `to_zone`, for a Python datetime."""
    offset = value.utcoffset()
    if offset is None:
        return value
    if zone == LOCAL:
        return value.replace(tzinfo=None)
    if not zone:
        raise ValueError(UNEXPECTED_OFFSET)
    try:
        return to_zone(Timestamp(value.astimezone(UTC).replace(tzinfo=None), 0), zone)
    except OverflowError:
        raise ValueError(NOT_A_TIMESTAMP) from None


def is_zone(zone: str) -> bool:
    """Whether `zone` is empty, `local`, a fixed offset such as +01:00 or an IANA name."""
    return zone in ("", LOCAL) or fixed_offset(zone) is not None or zone in zoneinfo.available_timezones()


def check_zone(zone: str) -> None:
    """Raise a ValueError unless `is_zone`."""
    if not is_zone(zone):
        known = zoneinfo.available_timezones()
        raise ValueError(
            f"unknown time zone '{zone}', {suggest(zone, sorted(known))} "
            "(IANA names such as Europe/Berlin, offsets such as +01:00, or local)"
        )


@lru_cache(maxsize=256)
def fixed_offset(zone: str) -> int | None:
    """Return the minutes of a zone that is a fixed offset, else None."""
    if zone == "UTC":
        return 0
    found = _FIXED.fullmatch(zone)
    if found is None or int(found[2]) > 14 or int(found[3]) > 59:
        return None
    return (int(found[2]) * 60 + int(found[3])) * (-1 if found[1] == "-" else 1)


def offset_minutes(text: str) -> int | None:
    """Return the minutes of an offset as `%z` matches it; None for more than a day."""
    if text[0] not in "+-":
        return 0
    digits = text[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    return None if hours > 23 or minutes > 59 else (hours * 60 + minutes) * (-1 if text[0] == "-" else 1)


@lru_cache(maxsize=4096)
def _compile_regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _build_pattern(name: str) -> tuple[str, list[str]]:
    """Return the expression of a strptime format and its directives (%B as %b)."""
    pattern, used = "^", []
    # Polars and chrono include the point of a fraction in the directive.
    for directive, literal in re.findall(r"%(.?)|([^%]+)", name.replace("%.f", ".%f")):
        if literal:
            pattern += "".join(" +" if part.isspace() else re.escape(part) for part in re.split(r"(\s+)", literal))
        elif directive not in _DIRECTIVES:
            raise ValueError(
                f"date format '{name}': unknown directive '%{directive}'; known: %{' %'.join(_DIRECTIVES)}"
            )
        else:
            used.append("b" if directive == "B" else directive)
            pattern += _DIRECTIVES[directive]
    return pattern + "$", used


def _parse_calendar(_: str, part: Mapping[str, str | None]) -> Timestamp | None:
    year = part.get("Y") or _find_century(part["y"] or "") + (part["y"] or "")
    month = part.get("m") or MONTHS[(part["b"] or "")[:3].lower()]
    hour = int(part.get("H") or part.get("I") or 0)
    if "p" in part:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if part["p"] in ("P", "p") else 0)
    zone = part.get("z")
    offset = offset_minutes(zone) if zone else None
    if zone and offset is None:
        return None
    try:
        wall = datetime(
            int(year),
            int(month),
            int(part.get("d") or 1),
            hour,
            int(part.get("M") or 0),
            int(part.get("S") or 0),
            int((part.get("f") or "").ljust(6, "0")[:6]),
        )
    except ValueError:
        return None
    return Timestamp(wall, offset)


def _find_century(year: str) -> str:
    """Follows POSIX: 69 to 99 are in the 20th century."""
    return "19" if year >= "69" else "20"


def _parse_number(name: str, part: Mapping[str, str | None]) -> Timestamp | None:
    whole, fraction = int(part["whole"] or 0), part["fraction"] or ""
    if name == EXCEL:
        days = float(f"{part['sign'] or ''}{whole}.{fraction or 0}")
        # Milliseconds: a float of days is not more precise.
        microseconds = int(((days - EXCEL_EPOCH_DAYS) * 86_400_000 + 0.5) // 1) * 1000
    else:
        unit = EPOCH_NS[name]
        digits = len(str(unit)) - 1
        nanoseconds = whole * unit + int(fraction.ljust(digits, "0")[:digits] or 0)
        microseconds = (-nanoseconds if part["sign"] else nanoseconds) // 1000
    try:
        # Spreadsheet days are wall-clock time, epochs are UTC.
        return Timestamp(EPOCH + timedelta(microseconds=microseconds), None if name == EXCEL else 0)
    except OverflowError:
        return None
