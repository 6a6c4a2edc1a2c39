"""Real-world tables: which columns get contract types, which stay unchanged, and which files are rejected."""

from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from flywheel_ml.core.contract import Contract
from flywheel_ml.data import tables
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import DataError, IntegrityError
from flywheel_ml.utils.files import sha256_file


def read_column(tmp_path: Path, kind: str, cells: str) -> pl.Series:
    """A CSV of one column `x` next to a counter, read as the contract type `kind`."""
    path = tmp_path / "x.csv"
    path.write_text("n,x\n" + "".join(f"{at},{cell}\n" for at, cell in enumerate(cells.split("/"))), encoding="utf-8")
    return tables.read(path, one(kind))["x"]


def one(kind: str) -> Contract:
    columns = [
        {"name": "n", "type": "integer"},
        {"name": "x", "type": kind, "nullable": True},
        {"name": "y", "type": "boolean", "role": "target"},
    ]
    return config_model.parse({"name": "one", "columns": columns}, Contract, "contract.yaml")


def conformed(kind: str, series: pl.Series) -> pl.Series:
    return tables.conform(pl.DataFrame({"x": series}), one(kind))["x"]


@pytest.mark.parametrize("suffix", [".parquet", ".PARQUET"])
def test_parquet_comes_back_as_it_was_written(
    tmp_path: Path, orders: pl.DataFrame, shop: Contract, suffix: str
) -> None:
    path = tmp_path / f"orders{suffix}"
    tables.write(orders, path)
    assert_frame_equal(tables.read(path, shop), orders)
    assert tables.count_rows(path) == 100


def test_csv_comes_back_as_it_was_written(tmp_path: Path, orders: pl.DataFrame, shop: Contract) -> None:
    path = tmp_path / "orders.csv"
    orders.write_csv(path)
    assert_frame_equal(tables.read(path, shop), orders)
    assert tables.count_rows(path) is None


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
def test_pieces_are_the_whole_table_in_order(
    tmp_path: Path, orders: pl.DataFrame, shop: Contract, suffix: str, rows: int
) -> None:
    path = tmp_path / f"orders{suffix}"
    orders.write_parquet(path) if suffix == ".parquet" else orders.write_csv(path)
    pieces = list(tables.read_chunks(path, shop, rows))
    assert max(piece.height for piece in pieces) <= rows
    assert_frame_equal(pl.concat(pieces), orders)


def test_equal_tables_are_equal_bytes(tmp_path: Path, orders: pl.DataFrame) -> None:
    for name in ("a", "b"):
        tables.write(orders, tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("kind", "cells", "values"),
    [
        ("integer", "1/2.0/ 3 /-4/+5/6e2", [1, 2, 3, -4, 5, 600]),
        ("integer", "9007199254740993/1", [9007199254740993, 1]),
        ("integer", "1//NaN/NA/null/None/-0", [1, None, None, None, None, None, 0]),
        ("float", "1/.5/-2e-3/ 7 /1e400/-inf", [1.0, 0.5, -0.002, 7.0, None, None]),
        ("float", "1/NaN/nan//NA", [1.0, None, None, None, None]),
        ("boolean", "true/True/TRUE/yes/Y/t/1/1.0", [True] * 8),
        ("boolean", "false/False/FALSE/no/N/f/0/0.0", [False] * 8),
        ("boolean", "yes//NA", [True, None, None]),
        ("string", "a/NA/ b //x", ["a", "NA", "b", None, "x"]),
        ("string", '"a,b"/"say ""so"""/""/ä€😀', ["a,b", 'say "so"', None, "ä€😀"]),
        (
            "datetime",
            "2013-06-01/2013-06-01 05:30/2013-06-01T05:30:00.5/",
            [
                datetime(2013, 6, 1),
                datetime(2013, 6, 1, 5, 30),
                datetime(2013, 6, 1, 5, 30, 0, 500_000),
                None,
            ],
        ),
    ],
)
def test_texts_are_parsed_by_the_contract(tmp_path: Path, kind: str, cells: str, values: list[Any]) -> None:
    column = read_column(tmp_path, kind, cells)
    assert column.dtype == tables.DTYPES[kind]
    assert column.to_list() == values


@pytest.mark.parametrize(
    ("kind", "cells", "wrong"),
    [
        ("integer", "1/2.5/3", [1]),
        ("integer", "1/x/2/y", [1, 3]),
        ("integer", "1/1e300/99999999999999999999", [1, 2]),
        ("integer", "1/true", [1]),
        ("float", "1/1.2.3/abc", [1, 2]),
        ("float", '1/"1,5"', [1]),
        ("boolean", "yes/maybe/2", [1, 2]),
        ("datetime", "2013-06-01/01.06.2013/2013-6-1/noon", [1, 2, 3]),
        ("datetime", "noon", [0]),
        ("datetime", "2013-02-30", [0]),
        ("datetime", "2013-06-01T05:30Z/2013-06-01T05:30-04:00/2013-06-01", [0, 1]),
        ("datetime", "1612120800123", [0]),
    ],
)
def test_column_with_one_odd_value_stays_text_and_is_reported(
    tmp_path: Path, kind: str, cells: str, wrong: list[int]
) -> None:
    column = read_column(tmp_path, kind, cells)
    assert column.dtype == pl.String
    assert tables.find_misfits(column, one(kind)["x"]).arg_true().to_list() == wrong


@pytest.mark.parametrize(
    ("kind", "series", "values"),
    [
        ("float", pl.Series([1, None], dtype=pl.Int32), [1.0, None]),
        ("float", pl.Series([1.5, float("nan")], dtype=pl.Float32), [1.5, None]),
        ("float", pl.Series([1.5, float("nan"), None]), [1.5, None, None]),
        ("float", pl.Series([1, 2], dtype=pl.Decimal(10, 2)), [1.0, 2.0]),
        ("float", pl.Series([None, None], dtype=pl.Null), [None, None]),
        ("integer", pl.Series([1.0, float("nan"), None]), [1, None, None]),
        ("integer", pl.Series([1, 255], dtype=pl.UInt8), [1, 255]),
        ("boolean", pl.Series([0, 1, None]), [False, True, None]),
        ("boolean", pl.Series([0.0, 1.0, float("nan")]), [False, True, None]),
        ("string", pl.Series(["a", None], dtype=pl.Categorical), ["a", None]),
        ("string", pl.Series(["a", None], dtype=pl.Enum(["a"])), ["a", None]),
        ("string", pl.Series([None, None], dtype=pl.Null), [None, None]),
        ("string", pl.Series([time(8, 5), None]), ["08:05:00", None]),
        ("float", pl.Series([timedelta(minutes=2), None]), [120.0, None]),
        ("string", pl.Series([7, 2**64 - 1, None], dtype=pl.UInt64), ["7", "18446744073709551615", None]),
        ("datetime", pl.Series([date(2013, 1, 1), None]), [datetime(2013, 1, 1), None]),
        ("datetime", pl.Series([datetime(2013, 1, 1)], dtype=pl.Datetime("ns")), [datetime(2013, 1, 1)]),
        ("datetime", pl.Series(["2013-01-01T00:00", None]), [datetime(2013, 1, 1), None]),
        ("integer", pl.Series([1.0, float("inf")]), [1, None]),
        ("string", pl.Series([1, 2]), ["1", "2"]),
    ],
)
def test_other_types_are_cast_where_nothing_is_lost(kind: str, series: pl.Series, values: list[Any]) -> None:
    column = conformed(kind, series)
    assert column.dtype == tables.DTYPES[kind]
    assert column.to_list() == values


@pytest.mark.parametrize(
    ("kind", "series", "wrong"),
    [
        ("integer", pl.Series([1.0, 1.5]), [1]),
        ("datetime", pl.Series([datetime(2013, 1, 1, 12)]).dt.replace_time_zone("America/New_York"), [0]),
        ("integer", pl.Series([1, 2**64 - 1], dtype=pl.UInt64), [1]),
        ("integer", pl.Series([True, False]), [0, 1]),
        ("integer", pl.Series([datetime(2013, 1, 1)]), [0]),
        ("float", pl.Series([1, 2**53 + 1]), [1]),
        ("boolean", pl.Series([0, 1, 2]), [2]),
        ("boolean", pl.Series([0.0, 0.5]), [1]),
        ("string", pl.Series([b"a"]), [0]),
        ("float", pl.Series([[1.0], None]), [0]),
        ("float", pl.Series([{"a": 1}]), [0]),
        ("datetime", pl.Series([1_370_000_000, None]), [0]),
    ],
)
def test_other_types_stay_where_a_cast_would_lose_values(kind: str, series: pl.Series, wrong: list[int]) -> None:
    assert conformed(kind, series).dtype == series.dtype
    assert tables.find_misfits(series, one(kind)["x"]).arg_true().to_list() == wrong


def test_one_row_is_a_table(tmp_path: Path, orders: pl.DataFrame, shop: Contract) -> None:
    for name in ("one.csv", "one.parquet"):
        frame = orders.head(1)
        frame.write_csv(tmp_path / name) if name.endswith("csv") else frame.write_parquet(tmp_path / name)
        assert_frame_equal(tables.read(tmp_path / name, shop), frame)


@pytest.mark.parametrize(
    "name", ["größe", "a.b", 'say "so"', "two words", "a,b", "x" * 300, "col\nwith a line break", "名前", "{{ x }}"]
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_may_have_any_name(tmp_path: Path, name: str, suffix: str) -> None:
    columns = [{"name": name, "type": "float"}, {"name": "y", "type": "boolean", "role": "target"}]
    contract = config_model.parse({"name": "odd", "columns": columns}, Contract, "contract.yaml")
    frame = pl.DataFrame({name: [1.5, 2.0], "y": [True, False]})
    path = tmp_path / f"odd{suffix}"
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    assert_frame_equal(tables.read(path, contract), frame)


def test_csv_as_spreadsheets_write_it(tmp_path: Path, shop: Contract, orders: pl.DataFrame) -> None:
    text = orders.with_columns(pl.lit("two\nlines, and a comma").alias("buyer")).write_csv()
    path = tmp_path / "orders.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (text.replace("\n", "\r\n") + "\r\n\r\n").encode())
    found = tables.read(path, shop)
    assert found["buyer"].to_list() == ["two\r\nlines, and a comma"] * 100
    assert_frame_equal(found.drop("buyer"), orders.drop("buyer"))


def test_a_very_long_text_is_read(tmp_path: Path) -> None:
    assert read_column(tmp_path, "string", "x" * 1_000_000)[0] == "x" * 1_000_000


@pytest.mark.parametrize("rows", [None, 10])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a.csv is empty \(0 bytes\)"),
        ("a.parquet", b"", r"a.parquet is empty \(0 bytes\)"),
        ("a.csv", b"\n", "a.csv contains only blanks; give a table with a header and rows"),
        ("a.csv", b"n,x\n", "a.csv has no rows; there is nothing to read"),
        ("a.csv", b"n,x", "a.csv has no rows; there is nothing to read"),
        ("a.csv", b"n,x\n\n\n", "a.csv has no rows; there is nothing to read"),
        ("a.csv", b"n,x,x\n1,2,3\n", "a.csv: the column 'x' appears twice in the header"),
        ("a.csv", b"n,x\n1,2,3\n", r"a.csv, line 2: 3 cells where the header has 2 \('1,2,3'\); quote"),
        ("a.csv", b'n,x\n1,"open\n', "a.csv, line 2: the quote that opens there is never closed"),
        ("a.csv", b"PK\x03\x04rest", r"a.csv is zip \(or Excel\) by its content; unpack it, or save it as CSV"),
        ("a.csv", b"\x1f\x8brest", "a.csv is gzip by its content; rename it to a.csv.gz"),
        ("a.parquet", b"n,x\n1,2\n", "a.parquet is not a Parquet file .it starts with b'n,x.n1,2.n'"),
        ("a.parquet", b"PAR1", "a.parquet is damaged|cut off"),
        ("a.parquet", b"PA", "a.parquet is not a Parquet file"),
        ("a.xlsx", b"PK\x03\x04rest", "a.xlsx is zip .or Excel. by its content"),
    ],
)
def test_file_that_is_not_a_table_is_rejected_with_its_kind(
    tmp_path: Path, name: str, content: bytes, message: str, rows: int | None
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(tables.read_chunks(tmp_path / name, one("string"), rows)) if rows else tables.read(
            tmp_path / name, one("string")
        )
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("rows", [None, 10])
def test_parquet_named_csv_is_rejected(tmp_path: Path, orders: pl.DataFrame, shop: Contract, rows: int | None) -> None:
    orders.write_parquet(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a.csv is Parquet by its content, not csv; rename it"):
        list(tables.read_chunks(tmp_path / "a.csv", shop, rows)) if rows else tables.read(tmp_path / "a.csv", shop)


@pytest.mark.parametrize("frame", [pl.DataFrame(), pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)})])
def test_parquet_without_rows_is_rejected(tmp_path: Path, frame: pl.DataFrame) -> None:
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"there is nothing to read"):
        tables.read(tmp_path / "a.parquet", one("float"))


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("rows", [None, 10])
def test_parquet_that_was_cut_off_is_rejected(
    tmp_path: Path, orders: pl.DataFrame, shop: Contract, kept: float, rows: int | None
) -> None:
    path = tmp_path / "a.parquet"
    orders.write_parquet(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert tables.count_rows(path) is None
    with pytest.raises(DataError, match=r"a.parquet is truncated: its Parquet footer is missing"):
        list(tables.read_chunks(path, shop, rows)) if rows else tables.read(path, shop)


@pytest.mark.parametrize("rows", [None, 10])
def test_parquet_that_is_damaged_inside_is_rejected(
    tmp_path: Path, orders: pl.DataFrame, shop: Contract, rows: int | None
) -> None:
    path = tmp_path / "a.parquet"
    orders.write_parquet(path, compression="zstd")
    whole = bytearray(path.read_bytes())
    refused = 0
    for at in range(8, len(whole) - 8, len(whole) // 40):
        damaged = whole.copy()
        damaged[at : at + 8] = bytes(byte ^ 0xFF for byte in damaged[at : at + 8])
        path.write_bytes(damaged)
        try:
            list(tables.read_chunks(path, shop, rows)) if rows else tables.read(path, shop)
        except DataError as error:
            refused += "a.parquet is damaged and cannot be read as Parquet" in str(error)
    # Parquet sums up no page by default: what still decodes is found by the hash of the file, not here.
    assert refused >= 20


def test_parquet_with_two_columns_of_one_name_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array([1.0]), pa.array([2.0])], names=["x", "x"]), path)
    with pytest.raises(DataError, match=r"a\.parquet"):
        tables.read(path, one("float"))


def test_missing_file_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").touch()
    with pytest.raises(DataError, match=r"order.csv does not exist; in that folder: did you mean 'orders.csv'"):
        tables.read(tmp_path / "order.csv", one("float"))
    with pytest.raises(DataError, match=r"does not exist; in that folder: nothing"):
        tables.read(tmp_path / "nowhere" / "order.csv", one("float"))
    with pytest.raises(DataError, match=r"is a folder without Parquet files"):
        tables.read(tmp_path, one("float"))


def test_table_changed_after_its_stage_is_rejected(tmp_path: Path, orders: pl.DataFrame) -> None:
    path = tmp_path / "a.parquet"
    tables.write(orders, path)
    sha256 = sha256_file(path)
    assert_frame_equal(tables.read_verified(path, sha256), orders)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(IntegrityError, match=r"a.parquet is not the file that its stage wrote .*corrupted DVC cache"):
        tables.read_verified(path, sha256)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"a.parquet.*dvc repro"):
        tables.read_verified(path, sha256)


def test_missing_values_travel_alike_from_every_source(tmp_path: Path, orders: pl.DataFrame, shop: Contract) -> None:
    gaps = orders.with_columns(pl.col("amount", "weight").fill_null(float("nan")))
    gaps.write_parquet(tmp_path / "nan.parquet")
    orders.write_parquet(tmp_path / "null.parquet")
    orders.write_csv(tmp_path / "csv.csv", null_value="NaN")
    gaps.write_csv(tmp_path / "nan.csv")
    for name in ("nan.parquet", "nan.csv"):
        columns = tables.to_columns(tables.read(tmp_path / name, shop), shop.inputs)
        expected = tables.to_columns(tables.read(tmp_path / "null.parquet", shop), shop.inputs)
        for column, values in expected.items():
            np.testing.assert_array_equal(columns[column], values)
