"""Parses durations and sizes, such as 90d and 10GB, and formats them."""

import re
from datetime import timedelta

from flywheel_ml.utils.errors import ConfigError

HOURS = {"h": 1, "d": 24, "w": 24 * 7, "y": 24 * 365}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MAX_HOURS = 24 * 365 * 100

_DURATION = re.compile(r"([0-9]{1,9})\s*([hdwy])", re.IGNORECASE)
_SIZE = re.compile(r"([0-9]{1,9}(?:[.][0-9]{1,3})?)\s*([kmgt]?b)", re.IGNORECASE)
_UNITS = {name.lower(): size for name, size in BYTES.items()}


def parse_duration(text: str, name: str = "AGE") -> timedelta:
    """Parse a duration such as 36h, 90d, 8w or 2y.

    Raises:
        ConfigError: it is not a duration from one hour to a hundred years; the message begins with `name`.
    """
    found = _DURATION.fullmatch(text.strip())
    hours = int(found[1]) * HOURS[found[2].lower()] if found else 0
    if not 0 < hours <= MAX_HOURS:
        raise ConfigError(f"{name}: '{text}' is not a duration; write a number and h, d, w or y, such as 90d")
    return timedelta(hours=hours)


def parse_size(text: str, name: str = "SIZE") -> int:
    """Parse a size such as 500MB or 10GB, in bytes.

    Raises:
        ConfigError: it is not a size of at least 1 MB; the message begins with `name`.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < BYTES["MB"]:
        raise ConfigError(f"{name}: '{text}' is not a size of at least 1MB; write one such as 500MB or 10GB")
    return size


def format_bytes(size: float) -> str:
    """Format a number of bytes in the largest unit of which there is at least one."""
    name, unit = next(((name, unit) for name, unit in reversed(BYTES.items()) if abs(size) >= unit), ("B", 1))
    return f"{size / unit:.0f} {name}" if unit == 1 else f"{size / unit:.1f} {name}"
