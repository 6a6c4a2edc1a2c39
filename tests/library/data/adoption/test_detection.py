"""The format of cells is detected from a sample, and later files are parsed in that format."""

import json
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from flywheel_ml.core.parsing import parse_value
from flywheel_ml.data import tables
from flywheel_ml.data.adoption.detection.detected import Detected, Hints, read_column
from flywheel_ml.data.adoption.detection.guess import guess_column, guess_table
from library.helpers.adoption_helpers import adopt_file, find_role, issue_set, profile_source, propose

ROWS = 300
RANDOM = random.Random(0)
AMOUNTS = [round(RANDOM.lognormvariate(6, 1.2) * RANDOM.choice([1, 1, -1]), 2) for _ in range(ROWS)]
TIMES = [datetime(2023, 1, 1) + timedelta(hours=9 * at) for at in range(ROWS)]
LABELS = [RANDOM.choice(["yes", "no"]) for _ in range(ROWS)]


def detected(cells: list[str], name: str = "c", **hints: Any) -> Detected:
    found = guess_column(pl.Series(name, cells), Hints(**hints))
    assert found is not None
    return found


def written(values: list[Any], write: Callable[[Any], str]) -> list[str]:
    return [write(value) for value in values]


def strewn(cells: list[str], words: list[str], share: float) -> list[str]:
    """The cells, some of them replaced by one of the words."""
    chance = random.Random(1)
    return [chance.choice(words) if chance.random() < share else cell for cell in cells]


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1,5", "2,25", "-3"], "float", [1.5, 2.25, -3.0]),
        (["1.234,5", "12,0"], "float", [1234.5, 12.0]),
        (["1,234,567", "12"], "integer", [1234567, 12]),
        (["1,234.5", "12"], "float", [1234.5, 12.0]),
        (["1 234", "12"], "integer", [1234, 12]),
        (["$5", "$1.50"], "float", [5.0, 1.5]),
        (["12%", "3 %"], "float", [12.0, 3.0]),
        (["1e5", ".5", "+3."], "float", [1e5, 0.5, 3.0]),
        (["3.0", "", "4.0"], "integer", [3, None, 4]),
        (["3.0", "4.0"], "float", [3.0, 4.0]),
        ([" 1", "2 ", "?"], "integer", [1, 2, None]),
        (["1.5", "n/a", "NULL", "-"], "float", [1.5, None, None, None]),
        (["007", "123"], "string", ["007", "123"]),
        (["12345678901234567890", "1"], "string", ["12345678901234567890", "1"]),
        (["True", "FALSE", ""], "boolean", [True, False, None]),
        (["Y", "n", "N"], "boolean", [True, False, False]),
        (["0", "1", "1"], "integer", [0, 1, 1]),
        (["a", "", " b "], "string", ["a", None, "b"]),
        (["__missing__", "b"], "string", [None, "b"]),
        (["2020-01-31", "2020-02-01"], "datetime", [datetime(2020, 1, 31), datetime(2020, 2, 1)]),
        (["31.01.2020 08:15", "01.02.2020 09:00"], "datetime", [datetime(2020, 1, 31, 8, 15), datetime(2020, 2, 1, 9)]),
        (["1/31/2020", "2/1/2020"], "datetime", [datetime(2020, 1, 31), datetime(2020, 2, 1)]),
        (["31/01/20", "01/02/20"], "datetime", [datetime(2020, 1, 31), datetime(2020, 2, 1)]),
        (["Jan 5, 2020", "Feb 10, 2020"], "datetime", [datetime(2020, 1, 5), datetime(2020, 2, 10)]),
        (["2020-01-31T10:00:00+02:00", "2020-01-31T10:00:00Z"], "datetime",
         [datetime(2020, 1, 31, 10), datetime(2020, 1, 31, 10)]),
        (["01/31/2020 3:05 PM", "02/01/2020 11:00 AM"], "datetime",
         [datetime(2020, 1, 31, 15, 5), datetime(2020, 2, 1, 11)]),
    ],
)  # fmt: skip
def test_cells_are_read_as_what_they_mean(cells: list[str], kind: str, values: list[object]) -> None:
    series = pl.Series("c", cells)
    parse = guess_column(series, Hints())
    assert parse is not None
    assert (parse.type, read_column(series, parse)[0].to_list()) == (kind, values)


def test_boolean_has_one_spelling_of_each_value() -> None:
    parse = guess_column(pl.Series("c", ["Yes", "No", "yes", "NO", "no"] * 9), Hints())
    assert parse is not None
    assert parse.description == "boolean (Yes or NO)"


def test_ambiguous_thousands_are_not_guessed() -> None:
    unclear = pl.DataFrame({"price": ["1,234", "5,678"], "note": ["a", "b"]})
    found, _ = guess_table(unclear, Hints())
    assert found["price"] is not None
    assert (found["price"].type, found["price"].unclear) == ("string", "number")
    found, _ = guess_table(unclear.with_columns(weight=pl.Series(["1,5", "22,75"])), Hints())
    assert found["price"] is not None
    assert read_column(unclear["price"], found["price"])[0].to_list() == [1.234, 5.678]


def test_ambiguous_dates_use_the_chronological_order() -> None:
    series = pl.Series("c", ["01/11/2020", "02/11/2020", "01/12/2020", "02/12/2020"])
    parse = guess_column(series, Hints())
    assert parse is not None
    assert parse.unclear == "date"
    assert read_column(series, parse)[0].is_sorted()


@pytest.mark.parametrize(("name", "values"), [("date", [20200131, 20200201]), ("timestamp", [1580428800, 1580515200])])
def test_numbers_that_are_dates_by_name_are_dates(name: str, values: list[int]) -> None:
    for series in (pl.Series(name, values), pl.Series(name, list(map(str, values)))):
        parse = guess_column(series, Hints())
        assert parse is not None
        assert read_column(series, parse)[0].to_list() == [datetime(2020, 1, 31), datetime(2020, 2, 1)]
    assert getattr(guess_column(pl.Series("count", values), Hints()), "type", "") == "integer"


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_every_number_that_was_written_is_read_back(numbers: list[float]) -> None:
    series = pl.Series("c", [repr(number) for number in numbers])
    parse = guess_column(series, Hints())
    assert parse is not None
    assert parse.type == "float"
    assert read_column(series, parse)[0].to_list() == numbers


@pytest.mark.parametrize(
    ("write", "parse"),
    [
        (lambda x: f"({abs(x):,.2f})" if x < 0 else f"{x:,.2f}", {"thousands": ","}),
        (lambda x: f"(${abs(x):,.2f})" if x < 0 else f"${x:,.2f}", {"thousands": ",", "symbols": ("$",)}),
        (lambda x: f"{x:.2f}".replace("-", "\u2212"), {}),
        (lambda x: f"{abs(x):.2f}{'-' if x < 0 else ''}", {}),
        (lambda x: german(abs(x)) + ("-" if x < 0 else ""), {"decimal": ",", "thousands": "."}),
        (lambda x: german(x) + " €", {"decimal": ",", "thousands": ".", "symbols": ("€",)}),
        (lambda x: german(x).replace(".", "\u202f"), {"decimal": ",", "thousands": " "}),
        (lambda x: f"{x:,.2f}".replace(",", "\u2019"), {"thousands": "'"}),
        (lambda x: f" {x:.2f} km/h", {"symbols": ("km/h",)}),
        (lambda x: f"{x:.2f} sq. ft.", {"symbols": ("sq. ft.",)}),
        (lambda x: f"{x:.2f}{'*' if int(x) % 7 else ''}", {"symbols": ("*",)}),
        (lambda x: f"R$ {german(x)}", {"decimal": ",", "thousands": ".", "symbols": ("R$",)}),
        (lambda x: f"{x:.2f}{'%' if int(x) % 3 else ''}", {"symbols": ("%",)}),
    ],
)
def test_numbers_are_read_as_people_write_them(write: Callable[[Any], str], parse: dict[str, Any]) -> None:
    cells = written(AMOUNTS, write)
    found = detected(cells)
    assert found.parse.model_dump(exclude_defaults=True) == parse
    assert read_column(pl.Series(cells), found)[0].to_list() == AMOUNTS


@pytest.mark.parametrize(
    "words", [["<NA>"], ["inf", "-inf"], ["#DIV/0!", "#N/A"], ["NaT", "nan"], ["*", ".."], ["k.A."]]
)
def test_markers_are_missing_however_many_there_are(words: list[str]) -> None:
    cells = strewn(written(AMOUNTS, str), words, 0.4)
    found = detected(cells)
    assert (found.type, found.parse.na_values) == ("float", ())
    assert read_column(pl.Series(cells), found)[0].null_count() == sum(cell in words for cell in cells) > 80


def test_few_words_leave_a_column_of_numbers_or_dates_what_it_is(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "amount": strewn(written(AMOUNTS, str), ["pending", "refused"], 0.2),
            "shipped": strewn(written(TIMES, str), ["open"], 0.2),
            "won": LABELS,
        }
    )
    found = propose(table, "won", tmp_path)
    assert [column["type"] for column in found.columns[:2]] == ["float", "datetime"]
    assert {("missing markers", "amount", "warned"), ("missing markers", "shipped", "warned")} <= issue_set(
        found.issues
    )


@pytest.mark.parametrize(
    ("cells", "unclear"),
    [
        ([f"{RANDOM.choice('$€')}{value:.2f}" for value in AMOUNTS], "unit"),
        ([f"{abs(value):.1f} {RANDOM.choice(['kg', 'g'])}" for value in AMOUNTS], "unit"),
        ([f"{abs(value):.1f}{RANDOM.choice(['k', ''])}" for value in AMOUNTS], "unit"),
        ([f"{RANDOM.random():.3f}" if at % 2 else f"{RANDOM.random() * 90 + 5:.1f}%" for at in range(ROWS)], "scale"),
        ([f"{RANDOM.random() * 8 + 1:.3f}" for _ in range(ROWS)], "number"),
        ([time.strftime("%GW%V") for time in TIMES], "dates"),
        ([time.strftime(RANDOM.choice(["%d/%m/%Y", "%m/%d/%Y"])) for time in TIMES], "dates"),
        ([f"{time.year}Q{time.month // 4 + 1}" for time in TIMES], "dates"),
    ],
    ids=["currencies", "units", "magnitudes", "percent", "groups", "weeks", "orders", "quarters"],
)
def test_cells_of_two_readings_are_reported(tmp_path: Path, cells: list[str], unclear: str) -> None:
    assert detected(cells).unclear == unclear
    kind = "looks like dates" if unclear == "dates" else "ambiguous"
    assert (kind, "c", "warned") in issue_set(
        propose(pl.DataFrame({"c": cells, "x": AMOUNTS, "won": LABELS}), "won", tmp_path).issues
    )


@pytest.mark.parametrize(
    "cells",
    [
        [f"M{at:03d}" for at in range(ROWS)],
        [f"Flat {at}" for at in range(ROWS)],
        [f"{at}{'ABCDEFG'[at % 7]}" for at in range(ROWS)],
        [f"{at}@example.org" for at in range(ROWS)],
        [f"+49 30 {at + 100000}" for at in range(ROWS)],
        [f"10.0.{at % 256}.1" for at in range(ROWS)],
        ["10+" if at % 5 == 0 else str(at % 9 + 1) for at in range(ROWS)],
        [f"{at % 9}/7" for at in range(ROWS)],
        [f"{at % 5} stars" for at in range(ROWS)],
    ],
)
def test_codes_with_digits_stay_texts(cells: list[str]) -> None:
    assert detected(cells).is_text


def test_whole_table_separates_thousands_from_decimals() -> None:
    residents = [f"{value:,}".replace(",", ".") for value in [455, 8969, 517, 25131, 6495, 45017] * 3]
    assert detected(residents).unclear == "number"
    assert detected(residents * 10).parse.thousands == "."
    assert detected(residents, semicolons=True).unclear == "number"
    assert detected(residents * 2, semicolons=True).parse.thousands == "."
    assert detected([*residents, "1.234.567"]).parse.thousands == "."
    assert detected([*residents, "12.5"]).parse.thousands == ""
    assert detected([*residents, "12345"]).parse.thousands == ""
    assert detected([*residents, "0.512"]).parse.thousands == ""
    for other, thousands in ((["1,5"] * 18, "."), (["1.5"] * 18, "")):
        found, _ = guess_table(pl.DataFrame({"residents": residents, "other": other}), Hints())
        assert found["residents"] is not None
        assert (found["residents"].parse.thousands, found["residents"].unclear) == (thousands, "")


@pytest.mark.parametrize(
    ("write", "formats", "zone"),
    [
        ("%Y-%m-%d %H:%M:%S+00", (), "UTC"),
        ("%Y-%m-%d %H:%M:%S.000 UTC", (), "UTC"),
        ("%Y-%m-%dT%H:%M:%SZ", (), "UTC"),
        ("%Y-%m-%dT%H:%M:%S+0530", (), "+05:30"),
        ("%a, %d %b %Y %H:%M:%S +0000", ("%a, %d %b %Y %H:%M:%S %z",), "UTC"),
        ("%a, %d %b %Y %H:%M:%S GMT", ("%a, %d %b %Y %H:%M:%S %z",), "UTC"),
        ("%d/%b/%Y:%H:%M:%S -0400", ("%d/%b/%Y:%H:%M:%S %z",), "-04:00"),
        ("%a %b %d %H:%M:%S %Y", ("%a %b %d %H:%M:%S %Y",), ""),
        ("%m/%d/%Y %I:%M:%S %p", ("%m/%d/%Y %I:%M:%S %p",), ""),
        ("%Y%m%d%H%M%S", ("%Y%m%d%H%M%S",), ""),
    ],
)
def test_timestamps_are_read_as_machines_write_them(write: str, formats: tuple[str, ...], zone: str) -> None:
    cells = [time.strftime(write) for time in TIMES]
    found = detected(cells)
    assert (found.parse.date_formats, found.time_zone, found.unclear) == (formats, zone, "")
    assert read_column(pl.Series(cells), found)[0].to_list() == TIMES


@pytest.mark.parametrize(
    ("name", "write", "formats"),
    [
        ("created_at", lambda time: f"{time.timestamp():.0f}", ("epoch_s",)),
        ("ts", lambda time: f"{time.timestamp():.3f}", ("epoch_s",)),
        ("event_time", lambda time: f"{time.timestamp() * 1e3:.0f}", ("epoch_ms",)),
        ("event_time", lambda time: f"{time.timestamp() * 1e6:.0f}", ("epoch_us",)),
        ("timestamp", lambda time: f"{int(time.timestamp()) * 10**9 + 7}", ("epoch_ns",)),
        ("order_date", lambda time: f"{(time.timestamp() / 86400 + 25569):.6f}", ("excel_days",)),
    ],
)
def test_counted_times_are_read_by_name_and_size(
    name: str, write: Callable[[datetime], str], formats: tuple[str, ...]
) -> None:
    cells = [write(time.replace(tzinfo=UTC)) for time in TIMES]
    for series in (
        pl.Series(name, cells),
        pl.Series(name, [float(cell) if "." in cell else int(cell) for cell in cells]),
    ):
        found = guess_column(series, Hints())
        assert found is not None
        assert found.parse.date_formats == formats
        assert read_column(series, found)[0].to_list() == TIMES


def test_counts_of_a_time_without_its_name_are_reported(tmp_path: Path) -> None:
    table = pl.DataFrame({"c": [int(time.timestamp() * 1000) for time in TIMES], "won": LABELS})
    assert ("looks like dates", "c", "warned") in issue_set(propose(table, "won", tmp_path).issues)


@pytest.mark.parametrize(
    ("cells", "formats"),
    [
        (strewn([f"{m:%Y-%m-%d %H:%M}" for m in TIMES], ["0000-00-00 00:00:00", "infinity"], 0.1), ()),
        (strewn([f"{m:%d.%m.%Y}" for m in TIMES], ["00.00.0000"], 0.1), ("%d.%m.%Y",)),
        ([f"{m:%Y-%m-%d}" if at % 3 else f"{m:%d/%m/%Y}" for at, m in enumerate(TIMES)], ("%d/%m/%Y",)),
        ([f"{m:%b %d, %Y}" if at % 3 else f"{m:%Y-%m-%d}" for at, m in enumerate(TIMES)], ("%b %d, %Y",)),
        ([f"{m:%d-%m-%y}" for m in TIMES], ("%d-%m-%y",)),
        ([f"{m:%b %Y}" for m in TIMES], ("%b %Y",)),
        ([f"{m:%b-%y}" for m in TIMES], ("%b-%y",)),
        ([f"{m:%Y-%m}" for m in TIMES], ("%Y-%m",)),
    ],
    ids=["zeros", "german zeros", "mixed", "words", "short", "month", "short month", "iso month"],
)
def test_dates_are_read_as_people_write_them(cells: list[str], formats: tuple[str, ...]) -> None:
    found = detected(cells)
    assert (found.type, found.parse.date_formats) == ("datetime", formats)
    dates = read_column(pl.Series(cells), found)[0]
    held = dates.is_not_null()
    assert (dates.dt.year() == 2023).filter(held).all()
    assert (dates.dt.month() == pl.Series(TIMES).dt.month()).filter(held).all()
    assert held.sum() > 0.85 * ROWS


@pytest.mark.parametrize(
    ("zones", "named"),
    [
        (["America/New_York"], "America/New_York"),
        (["Europe/Paris"], "Europe/Berlin"),
        (["Australia/Melbourne"], "Australia/Sydney"),
        (["Asia/Kolkata"], "+05:30"),
        (["Asia/Tokyo", "America/New_York"], "local"),
    ],
)
def test_times_with_offsets_keep_the_hour_that_was_written(zones: list[str], named: str) -> None:
    moments = [time.replace(tzinfo=UTC).astimezone(ZoneInfo(RANDOM.choice(zones))) for time in TIMES]
    cells = pl.Series([time.isoformat() for time in moments])
    found = detected(cells.to_list())
    assert found.time_zone == named
    assert read_column(cells, found)[0].to_list() == [time.replace(tzinfo=None) for time in moments]


def test_time_zone_is_detected_from_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_ROWS", "MAX_COUNTED_VALUES"):
        monkeypatch.setattr(f"flywheel_ml.data.adoption.profiling.{name}", 20)
    berlin = [time.replace(tzinfo=UTC).astimezone(ZoneInfo("Europe/Berlin")).isoformat() for time in TIMES]
    pl.DataFrame({"at": berlin, "won": LABELS}).write_csv(tmp_path / "t.csv")
    assert profile_source(tmp_path / "t.csv", "won").columns["at"].parse.time_zone == "Europe/Berlin"


@pytest.mark.parametrize(
    ("cells", "said", "missing", "why"),
    [
        (["red", "NA", "blue"], {}, ("NA",), "is missing"),
        (["red", "NA", "blue", ""], {}, (), "empty cells"),
        (["DE", "US", "NA", "FR"], {}, (), "codes of two letters"),
        (["red", "NA", "blue"], {"keep_na": ("c",)}, (), "you said so"),
        (["red", "NA", "blue"], {"quoted": ("c",)}, (), "in quotes"),
        (["red", "nan", "<NA>", ""], {}, ("nan", "<NA>"), "'nan' in 1 cells is missing"),
        (["red", "none", "blue"], {}, (), ""),
    ],
)
def test_na_among_texts_is_missing_unless_it_is_a_value(
    cells: list[str], said: dict[str, Any], missing: tuple[str, ...], why: str
) -> None:
    found = detected(cells, **said)
    assert found.parse.na_values == missing
    assert why in found.na


def test_na_of_the_target_leaves_rows_out_unless_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("x,outcome\n" + "".join(f"{at}.5,{['yes', 'no', 'NA'][at % 3]}\n" for at in range(ROWS)))
    contract, rows = adopt_file(path, "outcome")
    assert contract.classes == ("no", "yes")
    assert rows["outcome"].null_count() == ROWS // 3
    assert set(adopt_file(path, "outcome", keep_na=("outcome",))[0].classes) == {"NA", "no", "yes"}


def test_na_in_quotes_is_a_value(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    rows = "".join(f'{at}.5,"{["yes", "no", "NA"][at % 3]}","a, b"\n' for at in range(ROWS))
    path.write_text('"x","outcome","note"\n' + rows)
    assert len(adopt_file(path, "outcome")[0].classes) == 3
    path.write_text('"x","outcome","note"\n' + re.sub(r"^(.*?),", r'"\1",', rows, flags=re.MULTILINE))
    assert len(adopt_file(path, "outcome")[0].classes) == 2


def odd_table() -> dict[str, list[str]]:
    """Cells as people write them; every column that is read at all must be read the same again."""
    return {
        "spaced": written(AMOUNTS, lambda x: f"  {x:.2f} "),
        "shop": [f" {name}" for name in RANDOM.choices(["north", "cafe\u0301", "NA", "south"], k=ROWS)],
        "empty": RANDOM.choices(["basic", "pro", ""], k=ROWS),
        "owner": RANDOM.choices(["yes", "no", "?"], k=ROWS),
        "price": written(AMOUNTS, lambda x: german(x) + " €"),
        "share": strewn(written(AMOUNTS, lambda x: f"{x:.1f} %"), ["oops"], 0.005),
        "books": written(AMOUNTS, lambda x: f"({abs(x):,.2f})" if x < 0 else f"{x:,.2f}"),
        "count": strewn(written(AMOUNTS, lambda x: f"{abs(int(x))}.0"), ["", "<NA>"], 0.2),
        "huge": strewn(written(AMOUNTS, str), ["1e300", "inf"], 0.008),
        "day": [f"{m:%d/%m/%Y}" for m in TIMES],
        "stamp": [f"{int(m.timestamp()) * 1000}" for m in TIMES],
        "zoned": [m.replace(tzinfo=UTC).astimezone(ZoneInfo("Europe/Berlin")).isoformat(" ") for m in TIMES],
        "zero": strewn([f"{m:%Y-%m-%d}" for m in TIMES], ["0000-00-00"], 0.1),
        "code": [f"{at:05d}" for at in range(ROWS)],
        "wo\u0308rter": RANDOM.choices(["ja", "nein"], k=ROWS),
        "score": written(AMOUNTS, str),
        "won": LABELS,
    }


@pytest.mark.parametrize("quote", ["necessary", "always"])
def test_scoring_reads_the_adopted_file_as_adopt_did(tmp_path: Path, quote: Any) -> None:
    path = tmp_path / "odd.csv"
    pl.DataFrame(odd_table()).write_csv(path, quote_style=quote, separator=";")
    contract, rows = adopt_file(path, "won")
    again = tables.read(path, contract)
    assert again.schema == rows.schema
    one, other = (tables.to_columns(frame, contract.columns) for frame in (rows, again))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert {column.name: column.type for column in contract.columns} == {
        **dict.fromkeys(("spaced", "price", "share", "books", "huge", "score_given"), "float"),
        **dict.fromkeys(("shop", "empty", "code", "wörter", "won"), "string"),
        **dict.fromkeys(("day", "stamp", "zoned", "zero"), "datetime"),
        "count": "integer",
        "owner": "boolean",
    }


def test_adopted_rows_are_read_again_as_they_are(tmp_path: Path) -> None:
    pl.DataFrame(odd_table()).write_csv(tmp_path / "odd.csv")
    contract, rows = adopt_file(tmp_path / "odd.csv", "won")
    rows.write_parquet(tmp_path / "odd.parquet")
    assert_frame_equal(tables.read(tmp_path / "odd.parquet", contract), rows)


def test_rows_of_the_adopted_file_are_read_alone_as_in_the_table(tmp_path: Path) -> None:
    table = pl.DataFrame(odd_table())
    table.write_csv(tmp_path / "odd.csv")
    contract, _ = adopt_file(tmp_path / "odd.csv", "won")
    cells = tables.read(tmp_path / "odd.csv", contract)
    names = dict(zip(cells.columns, table.columns, strict=True))
    for row, raw in zip(cells.head(60).iter_rows(named=True), table.head(60).iter_rows(named=True), strict=True):
        for column in contract.columns:
            cell = json.loads(json.dumps(raw[names[column.name]]))
            assert parse_value(cell, column) == row[column.name]


def test_typed_times_keep_their_zone(tmp_path: Path) -> None:
    moments = pl.Series(TIMES, dtype=pl.Datetime("ns")).dt.replace_time_zone("UTC")
    table = pl.DataFrame({"at": moments.dt.convert_time_zone("America/New_York"), "won": LABELS})
    found = propose(table, "won", tmp_path)
    assert found.columns[0]["time_zone"] == "America/New_York"
    assert find_role(found, "at") == "time"
    contract, rows = adopt_file(tmp_path / "shop.parquet", "won")
    assert rows["at"][0] == datetime(2022, 12, 31, 19)
    assert_frame_equal(tables.read(tmp_path / "shop.parquet", contract), rows)
