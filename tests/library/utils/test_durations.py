"""A duration is a number and a unit."""

from datetime import timedelta

import pytest

from flywheel_ml.utils.durations import parse_duration
from flywheel_ml.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", timedelta(hours=24)),
        ("1.5 d", timedelta(hours=36)),
        (" 4W ", timedelta(weeks=4)),
        ("100w", timedelta(weeks=100)),
    ],
)
def test_parse_duration_accepts_hours_days_and_weeks(text: str, expected: timedelta) -> None:
    assert parse_duration(text, "--last") == expected


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "0h", "1m", "1e3d", "٣d", "999999w", "nan d"])
def test_parse_duration_rejects_other_texts(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--last: '.*' is not a duration; give a number and h, d or w"):
        parse_duration(text, "--last")
