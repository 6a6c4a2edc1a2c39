"""One value costs little, whoever wrote it."""

import time
from typing import Any

import pytest

from << cookiecutter.package_name >>.contract import Column, Parse
from << cookiecutter.package_name >>.parsing import parse_value

COLUMNS: list[Column] = [
    Column(name="x", type="float"),
    Column(name="x", type="integer"),
    Column(name="x", type="float", parse=Parse(decimal=",", thousands=".", symbols=("€", "EUR"))),
    Column(name="x", type="datetime", parse=Parse(date_formats=("%d %B %Y %H:%M",))),
]


@pytest.mark.parametrize("column", COLUMNS, ids=str)
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
def test_a_text_that_is_no_value_is_refused_at_once(column: Column, text: Any) -> None:
    start = time.perf_counter()
    try:
        assert parse_value(text, column) is None
    except ValueError as error:
        assert str(error).startswith("must be")
    assert time.perf_counter() - start < 0.5
