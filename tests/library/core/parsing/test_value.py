"""Parsing one value is cheap, whatever its text."""

import time
from contextlib import suppress

import pytest

from flywheel_ml.core.contract import Column, Parse
from flywheel_ml.core.parsing import parse_value

COLUMNS: list[Column] = [
    Column(name="x", type="float"),
    Column(name="x", type="integer"),
    Column(name="x", type="float", parse=Parse(decimal=",", thousands=".", symbols=("€", "EUR"))),
    Column(name="x", type="datetime", parse=Parse(date_formats=("%d %B %Y %H:%M",))),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.type)
@pytest.mark.parametrize(
    "text",
    [
        f"1{' ' * 3000}x",
        f"({' ' * 3000}x",
        f"€{' ' * 3000}1 x",
        "1." * 3000 + "x",
        "1 " * 3000,
        "9" * 5000,
        "-" * 5000,
        "0" * 5000 + "x",
    ],
    ids=lambda text: text[:3],
)
def test_long_text_is_parsed_or_rejected_at_once(column: Column, text: str) -> None:
    start = time.perf_counter()
    with suppress(ValueError):
        parse_value(text, column)
    assert time.perf_counter() - start < 0.5


def test_integer_of_thousands_of_digits_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^must be an integer$"):
        parse_value("9" * 5000, COLUMNS[1])
