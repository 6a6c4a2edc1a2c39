"""A cell has the same value whether parsed alone or in a column."""

from datetime import datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flywheel_ml.core.contract import Column, Parse
from flywheel_ml.core.parsing import parse_value
from flywheel_ml.core.parsing.series import DTYPES, parse_series

COLUMNS = {
    "float": Column(name="x", type="float"),
    "euro": Column(name="x", type="float", parse=Parse(decimal=",", thousands=".", symbols=("€", "EUR"))),
    "dollar": Column(name="x", type="float", parse=Parse(thousands=",", symbols=("$", "%"), na_values=("-999", "x"))),
    "spaced": Column(name="x", type="integer", parse=Parse(decimal=",", thousands=" ")),
    "swiss": Column(name="x", type="float", parse=Parse(thousands="'")),
    "integer": Column(name="x", type="integer"),
    "boolean": Column(name="x", type="boolean", parse=Parse(true_values=("Ja",), false_values=("-", "Nein"))),
    "string": Column(name="x", type="string", parse=Parse(na_values=("NA",))),
    "codes": Column(name="x", type="string", categories=("00012", "04000"), max_unknown_share=0.1),
    "gap": Column(name="x", type="string", categories=("None", "Attached")),
    "naive": Column(name="x", type="datetime"),
    "utc": Column(name="x", type="datetime", time_zone="UTC"),
    "berlin": Column(name="x", type="datetime", time_zone="Europe/Berlin", parse=Parse(na_values=("1900-01-01",))),
    "fixed": Column(name="x", type="datetime", time_zone="-04:30"),
    "local": Column(
        name="x", type="datetime", time_zone="local", parse=Parse(date_formats=("%a, %d %b %Y %H:%M:%S %z",))
    ),
    "german": Column(name="x", type="datetime", parse=Parse(date_formats=("%d.%m.%Y %H:%M", "%d.%m.%y", "%b %Y"))),
    "american": Column(name="x", type="datetime", parse=Parse(date_formats=("%m/%d/%Y %I:%M:%S %p", "%m/%d/%y"))),
    "epoch_s": Column(name="x", type="datetime", time_zone="UTC", parse=Parse(date_formats=("epoch_s",))),
    "epoch_ns": Column(name="x", type="datetime", time_zone="Asia/Kolkata", parse=Parse(date_formats=("epoch_ns",))),
    "excel": Column(name="x", type="datetime", parse=Parse(date_formats=("excel_days",))),
    "compact": Column(name="x", type="datetime", parse=Parse(date_formats=("%Y%m%d",))),
}
PARTS = (
    "1", "2", "12", "007", "455", "8.969", "1,5", "1.234,5", "1,234.5", "1 234", "1\u202f234,5", "1'234",
    "1\u2019234.5", "1,23,456", "(2,083.49)", "\u2212", "-", "+", "5-", "$", "€", "EUR", "%", "e5", "E-3", ".", ",",
    "(", ")", " ", "\xa0", "\t", "x", "NA", "<NA>", "NaT", "nan", "inf", "-inf", "#DIV/0!", "n/a", "-999", "null",
    "9007199254740993", "1e400", "99999999999999999999", "yes", "NO", "T", "f", "Ja", "nein", "true", "é", "e\u0301",
    "\u1e9b\u0323", "İ", "Σ", "2020-01-31", "2020-02-30", "0000-00-00", "0000-00-00 00:00:00", "T08:30",
    " 08:30:59.1234567", "08:30", "+02:00", "+00", "Z", " UTC", "-0430", "+25:00", "31.01.2020", "01.02.20",
    "1/31/2020", " 3:05:00 PM", " 12:00:00 am", "Jan 2020", "Fri, 31 Jan 2020 10:00:00 +0000", "SEPT. 1999",
    "1580428800", "1612120800123", "1672532648409505327", "43831.5", "20200131", "1580428800.25", "253402300800",
    "-1", "1900-01-01", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00+14:00", "2023-03-26T01:30:00Z",
    "2023-10-29T00:30:00+00:00", "2100-07-01T12:00Z", "1850-01-01T00:00Z",
)  # fmt: skip


def alone(value: Any, column: Column) -> tuple[Any, bool]:
    """The value of one cell, and whether it is wrong."""
    try:
        return parse_value(value, column), False
    except ValueError:
        return None, True


def together(cells: list[Any], column: Column) -> list[tuple[Any, bool]]:
    values, wrong = parse_series(pl.Series("x", cells, strict=False), column)
    assert values.dtype == DTYPES[column.type]
    return list(zip(values, wrong, strict=True))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_sample_is_read_alike_alone_and_in_a_column(name: str) -> None:
    column = COLUMNS[name]
    cells = [*PARTS, "", *(one + other for one in PARTS for other in PARTS)]
    differing = [
        (cell, one, other)
        for cell, one, other in zip(
            cells, [alone(cell, column) for cell in cells], together(cells, column), strict=True
        )
        if one != other
    ]
    assert differing == []


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(COLUMNS)),
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.lists(st.sampled_from(PARTS), max_size=4).map("".join),
            st.from_regex(r"[-+(]?[0-9]{1,4}([., '][0-9]{1,3}){0,3}[-)%]?", fullmatch=True),
            st.datetimes().map(str),
            st.datetimes(timezones=st.timezones()).map(lambda moment: moment.replace(microsecond=0).isoformat()),
            st.none(),
        ),
        min_size=1,
        max_size=20,
    ),
)
@example("string", ["e\u0301", "\x1c a", "\u200b"])
def test_texts_are_read_alike_alone_and_in_a_column(name: str, cells: list[str | None]) -> None:
    column = COLUMNS[name]
    assert [alone(cell, column) for cell in cells] == together(cells, column)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(COLUMNS)),
    st.one_of(
        st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=9),
        st.lists(st.one_of(st.none(), st.floats(), st.integers(-9, 60_000).map(float)), min_size=1, max_size=9),
        st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=9),
        st.lists(st.one_of(st.none(), st.datetimes()), min_size=1, max_size=9),
    ),
)
@example("epoch_ns", [1672532648409505327, 0, None])
@example("euro", [2**53 + 1, 3])
@example("dollar", [-999, 3])
def test_typed_values_are_read_alike_alone_and_in_a_column(name: str, cells: list[Any]) -> None:
    column = COLUMNS[name]
    assert [alone(cell, column) for cell in cells] == together(cells, column)


@pytest.mark.parametrize(
    ("name", "cell", "value"),
    [
        ("float", " 1.5 ", 1.5),
        ("float", "(46.40)", -46.4),
        ("float", "\u22122083.49", -2083.49),
        ("float", "2083.49-", -2083.49),
        ("float", "-inf", None),
        ("float", "#DIV/0!", None),
        ("float", "<NA>", None),
        ("float", "1e400", None),
        ("dollar", "($2,083.49)", -2083.49),
        ("dollar", "$ -5", -5.0),
        ("dollar", "12 %", 12.0),
        ("dollar", "-999.0", None),
        ("euro", "1.234,50 €", 1234.5),
        ("euro", "8.969", 8969.0),
        ("swiss", "1\u2019234.5", 1234.5),
        ("spaced", "1\xa0234", 1234),
        ("integer", "3.0", 3),
        ("integer", "6e2", 600),
        ("boolean", "YES", True),
        ("boolean", "nein", False),
        ("boolean", "-", False),
        ("boolean", "NA", None),
        ("string", " e\u0301 ", "é"),
        ("string", "NA", None),
        ("string", "", None),
        ("string", "na", "na"),
        ("naive", "2020-01-31", datetime(2020, 1, 31)),
        ("naive", "0000-00-00 00:00:00", None),
        ("naive", "NaT", None),
        ("utc", "2023-01-01 00:51:40+00", datetime(2023, 1, 1, 0, 51, 40)),
        ("utc", "2023-01-01 02:00 UTC", datetime(2023, 1, 1, 2)),
        ("berlin", "2023-07-01T08:30:00Z", datetime(2023, 7, 1, 10, 30)),
        ("berlin", "2023-07-01T08:30", datetime(2023, 7, 1, 8, 30)),
        ("berlin", "1900-01-01 00:00:00", None),
        ("fixed", "2023-07-01T08:30Z", datetime(2023, 7, 1, 4)),
        ("local", "Fri, 31 Jan 2020 10:00:00 +0500", datetime(2020, 1, 31, 10)),
        ("german", "01.02.20", datetime(2020, 2, 1)),
        ("german", "March 1999", datetime(1999, 3, 1)),
        ("american", "1/31/2020 12:05:00 a.m.", datetime(2020, 1, 31, 0, 5)),
        ("epoch_s", 1580428800, datetime(2020, 1, 31)),
        ("epoch_s", "1580428800.25", datetime(2020, 1, 31, 0, 0, 0, 250_000)),
        ("epoch_ns", 1580428800_123456789, datetime(2020, 1, 31, 5, 30, 0, 123456)),
        ("excel", 43861.5, datetime(2020, 1, 31, 12)),
        ("compact", 20200131, datetime(2020, 1, 31)),
    ],
)
def test_cells_mean_what_the_contract_says(name: str, cell: Any, value: Any) -> None:
    assert alone(cell, COLUMNS[name]) == (value, False)
    assert together([cell], COLUMNS[name]) == [(value, False)]


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("float", "1,5", "must be a number"),
        ("float", "(5", "must be a number"),
        ("float", True, "must be a number"),
        ("euro", "1.23", "must be a number"),
        ("dollar", "1,23", "must be a number"),
        ("integer", 1.5, "must be an integer"),
        ("boolean", "maybe", "must be true or false"),
        ("boolean", 2, "must be true or false"),
        ("string", 1.5, "must be a string"),
        ("naive", "1612120800123", "must be an ISO 8601"),
        ("naive", "2020-01-31T10:00Z", "add `time_zone`"),
        ("naive", 20200131, "must be an ISO 8601"),
        ("epoch_s", "1612120800123", "or be written epoch_s"),
        ("german", "31/01/2020", r"or be written %d\.%m\.%Y %H:%M or"),
    ],
)
def test_invalid_cells_report_what_they_must_be(name: str, cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_value(cell, COLUMNS[name])
    assert together([cell], COLUMNS[name]) == [(None, True)]
