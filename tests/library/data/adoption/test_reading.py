"""A table is read correctly, or rejected with one line, whatever program wrote the file."""

import gzip
import json
import os
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from flywheel_ml.data.formats import database
from flywheel_ml.utils.errors import DataError
from library.helpers.adoption_helpers import profile_source

ROWS = [("1", "Zoë", "1.5", "yes"), ("2", 'a "b", c', "-2", "no"), ("3", "plain", "", "yes")]
TYPES = {"n": "integer", "name": "string", "x": "float", "ok": "boolean"}


def delimited(by: str, quote_all: bool = False) -> str:
    def cell(value: str) -> str:
        quoted = '"' + value.replace('"', '""') + '"'
        return quoted if quote_all or by in value or '"' in value else value

    return "".join(by.join(cell(value) for value in row) + "\n" for row in [tuple(TYPES), *ROWS])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", delimited(",").encode(), ("commas",)),
        ("t.csv", delimited(";").encode("utf-8-sig"), ("semicolons",)),
        ("t.tsv", delimited("\t").encode("utf-16"), ("UTF-16", "tabs")),
        ("t.txt", delimited("|").encode("utf-16-le"), ("UTF-16-LE", "bars")),
        ("t.data", delimited(",").encode("cp1252"), ("CP1252", "commas")),
        ("t.csv.gz", gzip.compress(delimited(",").encode("latin-1"), mtime=0), ("gzip", "CP1252", "commas")),
        ("t.csv", delimited(",").replace("\n", "\r\n").encode(), ("commas",)),
        ("t.csv", delimited(",").replace("\n", "\r").encode(), ("commas",)),
        ("t.csv", delimited(",", quote_all=True).encode(), ("commas",)),
        ("t.csv", delimited(",").replace("\n1,", "\n\n1,").encode(), ("commas",)),
        ("noname", delimited(";").encode(), ("semicolons",)),
    ],
)
def test_text_in_any_encoding_is_the_same_table(
    tmp_path: Path, name: str, content: bytes, said: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(content)
    found = profile_source(tmp_path / name, "n")
    assert found.notes == said
    assert found.name == name.partition(".")[0]
    assert {name: column.parse.type for name, column in found.columns.items()} == TYPES
    assert found.sample.rows() == [(1, "Zoë", 1.5, True), (2, 'a "b", c', -2.0, False), (3, "plain", None, True)]


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "n": [1, 2, 3],
            "kind": pl.Series(["a", "b", None], dtype=pl.Categorical),
            "at": pl.Series([datetime(2020, 1, day) for day in (1, 2, 3)]).dt.replace_time_zone("Europe/Berlin"),
            "tags": [["x"], [], None],
        }
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.parquet", lambda table, path: table.write_parquet(path)),
        ("t.arrow", lambda table, path: table.write_ipc(path)),
        ("t.feather", lambda table, path: table.write_ipc(path, compression="lz4")),
        ("t", lambda table, path: table.write_parquet(path, partition_by="n", mkdir=True)),
    ],
)
def test_typed_files_keep_types_and_drop_nested_columns(
    tmp_path: Path, name: str, write: Callable[[pl.DataFrame, Path], None]
) -> None:
    write(frame(), tmp_path / name)
    found = profile_source(tmp_path / name, "kind")
    assert found.left_out == ("tags",)
    assert found.columns["kind"].values == {"a": 1, "b": 1}
    assert found.columns["at"].minimum == datetime(2020, 1, 1)
    assert found.columns["at"].parse.time_zone == "Europe/Berlin"
    assert sorted(found.sample["n"]) == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    ["\n".join(json.dumps(row) for row in ({"a": 1, "b": "x"}, {"a": 2.5}, {"a": None, "b": "y"})),
     json.dumps([{"a": 1, "b": "x"}, {"a": 2.5}, {"a": None, "b": "y"}])],
    ids=["lines", "list"],
)  # fmt: skip
def test_json_may_be_lines_or_a_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    assert profile_source(tmp_path / "t.json", "a").sample.rows() == [(1.0, "x"), (2.5, None), (None, "y")]


def test_integers_that_only_a_text_holds_exactly_are_codes(tmp_path: Path) -> None:
    ids = pl.Series("id", [2**64 - 1 - at for at in range(30)], dtype=pl.UInt64)
    pl.DataFrame([ids, pl.Series("y", range(30))]).write_parquet(tmp_path / "t.parquet")
    column = profile_source(tmp_path / "t.parquet", "y").columns["id"]
    assert (column.parse.type, column.missing, column.misfits, column.unique) == ("string", 0, 0, True)


def test_no_more_values_differ_than_there_are(tmp_path: Path) -> None:
    pl.DataFrame({"x": [at / 7 for at in range(5000)], "y": [0, 1] * 2500}).write_parquet(tmp_path / "t.parquet")
    assert 4500 < profile_source(tmp_path / "t.parquet", "y").columns["x"].distinct <= 5000


def test_what_the_first_rows_hide_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel_ml.data.adoption.profiling.HEAD_ROWS", 100)
    monkeypatch.setattr("flywheel_ml.data.adoption.profiling.MAX_COUNTED_VALUES", 100)
    monkeypatch.setattr("flywheel_ml.data.adoption.profiling.BATCH_ROWS", 130)
    rows = 1000
    table = pl.DataFrame(
        {
            "late_fraction": ["1"] * 998 + ["2.5", "3"],
            "late_text": ["1"] * 500 + ["word"] * 500,
            "late_start": [""] * 900 + ["7"] * 100,
            "one_word": ["1"] * 995 + ["oops"] + ["2"] * 4,
            "n": list(map(str, range(rows))),
        }
    )
    table.write_csv(tmp_path / "t.csv")
    found = profile_source(tmp_path / "t.csv", "n").columns
    assert [found[name].parse.type for name in table.columns] == ["float", "string", "integer", "integer", "integer"]
    assert (found["one_word"].misfits, found["one_word"].examples) == (1, ("oops",))
    assert (found["late_start"].missing, found["late_fraction"].maximum) == (900, 3.0)
    assert (found["n"].unique, found["n"].distinct, found["n"].minimum, found["n"].maximum) == (True, rows, 0, 999)


def test_counts_over_many_batches_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel_ml.data.adoption.profiling.BATCH_ROWS", 1000)
    monkeypatch.setattr("flywheel_ml.data.adoption.profiling.SAMPLE_ROWS", 2000)
    rng = np.random.default_rng(0)
    rows = 20_000
    table = pl.DataFrame(
        {
            "x": rng.normal(size=rows),
            "k": rng.integers(0, 7, rows),
            "id": rng.permutation(rows),
            "twice": [*range(rows - 1), 0],
            "y": rng.random(rows) < 0.3,
        }
    )
    pl.concat([table, table.head(3)]).write_parquet(tmp_path / "t.parquet")
    found = profile_source(tmp_path / "t.parquet", "y")
    assert (found.rows, found.repeated) == (rows + 3, 3)
    assert found.columns["x"].minimum == table["x"].min()
    assert found.columns["k"].values == dict(pl.concat([table, table.head(3)])["k"].value_counts().iter_rows())
    assert found.columns["x"].distinct == pytest.approx(rows, rel=0.05)
    assert not found.columns["twice"].unique
    assert not found.columns["id"].unique
    assert 1500 < found.sample.height < 2500
    assert found.sample["k"].mean() == pytest.approx(3.0, abs=0.2)


def test_query_batches_may_differ_in_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BATCH_ROWS", 2)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table orders (id integer, amount, note text)")
        connection.executemany("insert into orders values (?, ?, ?)", [(1, 2, None), (2, 3, None), (3, 4.5, "x")])
    connection.close()
    found = profile_source(f"sqlite:///{tmp_path}/shop.db", "amount", "select * from orders order by id")
    assert found.sample.rows() == [(1, 2.0, None), (2, 3.0, None), (3, 4.5, "x")]
    pieces = sorted((tmp_path / "scratch").glob("rows-*.parquet"))
    assert [pl.read_parquet(piece).height for piece in pieces] == [2, 1]


def wrong(name: str, content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (wrong("t.csv", b""), "is empty (0 bytes)"),
        (wrong("t.csv", b"  \n\n"), "only blanks"),
        (wrong("t.csv", b"a,b\n"), "has no rows, only a header"),
        (wrong("t.csv", b"b\n1\n2\n"), "has one column only ('b')"),
        (wrong("t.csv", b"a,b,a\n1,2,3\n"), "the column 'a' appears twice"),
        (wrong("t.csv", b"1,2\n3,4\n"), "has no header"),
        (wrong("t.csv", b"a,b\n1,2\n1,2,3,4\n"), "line 3: 4 cells where the header has 2"),
        (wrong("t.csv", b"a,b\x00\x01\n1,2\n"), "is not readable text"),
        (wrong("t.csv", b"PAR1xxxxxPAR1"), "is Parquet by its content, not csv"),
        (wrong("t.parquet", b"a,b\n1,2\n"), "is not a Parquet file"),
        (wrong("t.parquet", b"PAR1 and then nothing"), "is truncated"),
        (wrong("t.xlsx", b"PK\x03\x04xxxxxx"), "zip (or Excel) by its content; unpack it, or save it as CSV"),
        (wrong("t.csv", gzip.compress(b"a,b\n1,2\n", mtime=0)), "is gzip by its content; rename it to t.csv.gz"),
        (wrong("t.csv.gz", b"a,b\n1,2\n"), "is not gzip by its content; rename it to t.csv"),
        (wrong("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 999, mtime=0)[:40]), "is damaged gzip"),
        (wrong("t.json", b"b,c"), "is not JSON with rows"),
        (wrong("t.db", b"SQLite format 3\0"), "sqlite:///PATH"),
        (lambda folder: str(folder / "t.cvs"), "does not exist"),
        (str, "is a folder without Parquet files"),
        (lambda _: "https://example.org/t.csv", "is not a database; download the file"),
        (lambda _: "nosuch://me:secret@host/db", "no driver"),
        (lambda folder: f"sqlite:///{folder}/none.db", "does not exist"),
        (lambda _: "postgresql://me:secret@localhost:port/db", "postgresql:… is not a database URL"),
    ],
)
def test_source_that_is_not_a_table_is_one_error_line(tmp_path: Path, make: Callable[[Path], str], said: str) -> None:
    with pytest.raises(DataError) as raised:
        profile_source(make(tmp_path), "b")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "tables: orders"),
        ("select * from order", "syntax error"),
        ("select 1 as a, 2 as a", "gives the column 'a' twice"),
        ("select * from orders", "gives no rows"),
        ("create table more (a)", "gives no rows"),
    ],
)
def test_query_without_a_table_is_one_error_line(tmp_path: Path, query: str, said: str) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table orders (id integer, a)")
    connection.close()
    with pytest.raises(DataError) as raised:
        profile_source(f"sqlite:///{tmp_path}/shop.db", "a", query)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush%40@host/db",
        "postgresql://host/db?user=me&password=hush",
        "postgresql://me:hush@host:x/db",
        "postgresql://me:hush@host/db?sslmode=hush",
        "postgresql:/me:hush@host/db",
        "me:hush@host/db",
        "host=host user=me password=hush",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    assert "hush" not in database.mask_password(url)
    with pytest.raises(DataError) as raised:
        profile_source(url.replace("host", "127.0.0.1:1"), "a", "select 1")
    assert "hush" not in str(raised.value)


def test_driver_error_does_not_reveal_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(url: sa.URL) -> None:
        raise KeyError(f"{url.render_as_string(hide_password=False)} p%40ss p@ss")

    monkeypatch.setattr(sa, "create_engine", faulty)
    with pytest.raises(DataError, match=r"me:\*\*\*@127.0.0.1/db: unexpected KeyError") as raised:
        database.scan_query("postgresql://me:p%40ss@127.0.0.1/db", "select 1", Path())
    assert "p@ss" not in str(raised.value)
    assert "p%40ss" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_pipe_is_rejected_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows.csv is a pipe or a device"):
        profile_source(tmp_path / "rows.csv", "a")
