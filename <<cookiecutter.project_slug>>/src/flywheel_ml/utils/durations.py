"""Parses durations that a person types."""

import re
from datetime import timedelta

from flywheel_ml.utils.errors import ConfigError

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s*([hdw])", re.ASCII)
_LONGEST = timedelta(days=36_525)


def parse_duration(text: str, name: str) -> timedelta:
    """Parse a duration such as 24h, 7d or 4w.

    Args:
        text: the duration.
        name: what it is, for the message.

    Raises:
        ConfigError: it is not a duration, zero, or longer than a century.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    length = float(found[1]) * _UNITS[found[2]] if found else timedelta()
    if not timedelta() < length <= _LONGEST:
        raise ConfigError(f"{name}: '{text}' is not a duration; give a number and h, d or w, such as 24h, 7d or 4w")
    return length
