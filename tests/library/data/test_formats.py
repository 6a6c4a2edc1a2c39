"""Real-world files: one reader returns the same rows from each, or reports the error and its place in one line."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.data.formats import layout, reading
from flywheel_ml.utils.errors import DataError

ROWS = [("1", "x"), ("2", "y")]
BOM = "\ufeff"


def read(path: Path) -> tuple[tuple[str, ...], list[tuple[Any, ...]], set[str]]:
    """Names, rows and kinds of repairs."""
    with reading.open_table(str(path)) as found:
        rows = [row for batch in found.batches(1000) for row in batch.rows()]
        return found.columns, rows, {repair.kind for repair in found.repairs}


@pytest.mark.parametrize(
    ("content", "repair"),
    [
        ("a,b\n1,x\n2,y\n", ""),
        ("sep=;\na;b\n1;x\n2;y\n", "lines above the header"),
        ('"sep=,"\r\na,b\r\n1,x\r\n2,y\r\n', "lines above the header"),
        ("Sales of 2023\n\na,b\n1,x\n2,y\n", "lines above the header"),
        ("Sales of 2023;\n;\na;b\n1;x\n2;y\n", "lines above the header"),
        ("# made by x, y\n#\na\tb\n1\tx\n2\ty\n", "lines above the header"),
        ("a,b\n1,x\na,b\n2,y\n", "repeated header"),
        (f'{BOM}"a","b"\n1,x\n{BOM}"a","b"\n2,y\n', "repeated header"),
        ("a,b\n1,x\n'a','b'\n2,y\n".replace("'", '"'), "repeated header"),
        ("a,b\n1,x,\n2,y,\n", ""),
        ("a,b,\n1,x\n2,y\n", ""),
        ("a,b\n1,x\n  \n2,y\n\x1a", ""),
        ("a,b\r1,x\n2,y\n", ""),
        ("a, b\n1, x\n2, y\n", ""),
        ("a   b\n1   x\n2 y\n", ""),
    ],
)
def test_irregular_text_is_read_as_the_intended_table(tmp_path: Path, content: str, repair: str) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode())
    columns, rows, repairs = read(tmp_path / "t.csv")
    assert (tuple(name.strip() for name in columns), [tuple(map(str.strip, row)) for row in rows]) == (("a", "b"), ROWS)
    assert repairs == ({repair} if repair else set())


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        ('"x","y"\n"Ann",1,2\n"Bob",3,4\n', ("column_1", "x", "y"), [("Ann", "1", "2"), ("Bob", "3", "4")]),
        ('"x" "y"\n"1" 1 2\n"2" 3 4\n', ("column_1", "x", "y"), [("1", "1", "2"), ("2", "3", "4")]),
        (",x\n0,5\n", ("column_1", "x"), [("0", "5")]),
        (
            "Station,Berlin\n\nday,temp,rain\n1,2,3\n2,3,4\n",
            ("day", "temp", "rain"),
            [("1", "2", "3"), ("2", "3", "4")],
        ),
        ("country,2019,2020\nNepal,1,2\n", ("country", "2019", "2020"), [("Nepal", "1", "2")]),
        ("a,b,c\n1,2,3\n4,5\n", ("a", "b", "c"), [("1", "2", "3"), ("4", "5", None)]),
        ('a,b\n5" pipe,1\n6" pipe,2\n', ("a", "b"), [('5" pipe', "1"), ('6" pipe', "2")]),
        ('a,b\n"two\nlines",1\n"a ""b""",2\n', ("a", "b"), [("two\nlines", "1"), ('a "b"', "2")]),
        ('a, b\n1, "x, y"\n', ("a", "b"), [("1", "x, y")]),
        ("x;y\n1,5;2,5\n3,5;4,5\n", ("x", "y"), [("1,5", "2,5"), ("3,5", "4,5")]),
        ("<DATE>,<OPEN>\n1,2\n", ("<DATE>", "<OPEN>"), [("1", "2")]),
    ],
)
def test_a_layout_is_found(tmp_path: Path, content: str, columns: tuple[str, ...], rows: list[Any]) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode())
    assert read(tmp_path / "t.csv")[:2] == (columns, rows)


@pytest.mark.parametrize("quoted", [False, True])
def test_a_file_is_regular_or_not_wherever_its_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quoted: bool
) -> None:
    monkeypatch.setattr("flywheel_ml.data.formats.text._BLOCK", 7)
    cell = '"a\n""b"""' if quoted else "ab"
    content = "n,c\n" + "".join(f"{at},{cell}\n" for at in range(30))
    (tmp_path / "t.csv").write_text(content)
    wanted = [(str(at), 'a\n"b"' if quoted else "ab") for at in range(30)]
    assert read(tmp_path / "t.csv")[1] == wanted
    (tmp_path / "t.csv").write_text(content + "30,ab,5\n")
    with pytest.raises(DataError, match=f"line {62 if quoted else 32}: 3 cells where the header has 2"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "t.csv",
            "a,b\n1,2\n3,u,v\n",
            "line 3: 3 cells where the header has 2 ('3,u,v'); quote a cell that holds commas",
        ),
        ("t.csv", "a,b\n" + "1,2,3\n" * 5, "line 2: 3 cells where the header has 2"),
        ("t.csv", "a,b\nMay 5, 2020,3\nMay 5, 2021,4\n", "line 2: 3 cells where the header has 2"),
        (
            "t.csv",
            "a,b,c\n1,2,3\nSource: web\n",
            "line 3: one cell where the header has 3 ('Source: web'); delete the line",
        ),
        (
            "t.csv",
            "a,b\n1,2\nb,a\n3,4\n",
            "line 3: the header appears again, in another order ('b,a'); split",
        ),
        ("t.csv", 'a,b\n1,2\n3,"x\n4,y\n', "line 3: the quote that opens there is never closed"),
        ("t.csv", "\u00e9,e\u0301\n1,2\n", "the column '\u00e9' appears twice"),
        ("t.csv", "<!DOCTYPE html><html>", "is HTML or XML by its content"),
        ("t.csv", "version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        ("t.json", '{"a": 1}\n{"a": 2,}\n', "line 2 is not a JSON object"),
        ("t.json", '{"a": 1}\n5\n', "line 2 is not an object ('5')"),
        ("t.json", '[{"a": 1},\n {"a": 2,}]', "line 2, column 10: not valid JSON"),
        ("t.json", '{"a": {"0": 1}, "b": {"0": 2}}', "one object of lists or objects, not rows"),
        ("t.json", "[]", "holds no rows"),
    ],
)
def test_unreadable_file_is_one_error_line_with_the_row(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(DataError) as raised:
        read(tmp_path / name)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("is_list", [False, True])
def test_numbers_that_json_does_not_know_are_missing(tmp_path: Path, is_list: bool) -> None:
    rows = [{"a": 1.5, "b": "NaN"}, {"a": float("nan"), "b": "say Infinity"}, {"a": float("-inf"), "b": None}]
    content = json.dumps(rows) if is_list else "\n".join(map(json.dumps, rows))
    (tmp_path / "t.json").write_text(content)
    assert read(tmp_path / "t.json")[:2] == (("a", "b"), [(1.5, "NaN"), (None, "say Infinity"), (None, None)])


def test_column_absent_from_some_files_is_missing_there(tmp_path: Path) -> None:
    parts = {2021: {"x": [1], "y": ["a"]}, 2022: {"x": [2.5], "y": ["b"], "extra": [7]}}
    for year, part in parts.items():
        (tmp_path / f"year={year}").mkdir()
        pl.DataFrame(part).write_parquet(tmp_path / f"year={year}" / "part.parquet")
    columns, rows, repairs = read(tmp_path)
    assert set(columns) == {"x", "y", "extra", "year"}
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        {"x": 1.0, "y": "a", "extra": None, "year": 2021},
        {"x": 2.5, "y": "b", "extra": 7, "year": 2022},
    ]
    assert repairs == {"partial column"}


def test_incompatible_types_are_reported(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1], "at": [datetime(2024, 1, 1)]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": ["b"], "at": [None]}).write_parquet(tmp_path / "b.parquet")
    assert read(tmp_path)[1] == [("1", datetime(2024, 1, 1)), ("b", None)]
    pl.DataFrame({"x": ["c"], "at": [5]}).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"column 'at' is Datetime.* in a.parquet and Int64 in c.parquet; write it"):
        read(tmp_path)


def test_names_that_differ_in_unicode_form_only_are_one_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("de\u0301cide\u0301,b\n1,2\n")
    pl.DataFrame({"de\u0301cide\u0301": [1], " b ": [2]}).write_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        assert read(tmp_path / name)[0] == ("d\u00e9cid\u00e9", "b")
    assert reading.normalize_name("de\u0301cide\u0301 ") == "d\u00e9cid\u00e9"


def test_a_header_longer_than_what_is_looked_at_is_found() -> None:
    names = [f"column {at}" for at in range(30_000)]
    head = ",".join(names) + "\n" + ",".join("1" for _ in names)
    assert layout.find_layout(head, is_whole=False).header == tuple(names)
