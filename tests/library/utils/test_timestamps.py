"""Valid formats are compiled; others are rejected by name."""

import pytest

from flywheel_ml.utils import timestamps


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ISO", "unknown date format 'ISO'"),
        ("%Y-%j", "unknown directive '%j'"),
        ("%d.%Y", "needs a year and a month"),
        ("%Y-%m-%d %I:%M", "%I and %p go together"),
        ("%Y-%m-%m", "%m occurs twice"),
        ("%d %b %B %Y", "%b occurs twice"),
    ],
)
def test_invalid_date_format_is_rejected(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timestamps.compile_format(name)


@pytest.mark.parametrize("zone", ["", "local", "UTC", "+01:00", "-04:30", "Europe/Berlin"])
def test_known_time_zone_is_accepted(zone: str) -> None:
    timestamps.check_zone(zone)


@pytest.mark.parametrize("zone", ["Europe/Berln", "+1", "+15:00", "CEST", "Local"])
def test_unknown_time_zone_is_rejected(zone: str) -> None:
    with pytest.raises(ValueError, match="unknown time zone"):
        timestamps.check_zone(zone)
