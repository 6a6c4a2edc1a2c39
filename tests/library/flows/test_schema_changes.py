"""Changes of the raw table's columns are reported until a run has completed with them."""

from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core import paths
from flywheel_ml.data.upstream_schema import compare_schemas, read_schema
from flywheel_ml.flows import schema_changes
from flywheel_ml.utils.files import read_json, write_json


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ingest(frame: pl.DataFrame) -> None:
    frame.write_parquet("raw.parquet")
    write_json(paths.REPORTS / "ingest.json", {"rows": frame.height, "columns": read_schema(Path("raw.parquet"))})


FIRST = pl.DataFrame({"a": [1], "b": ["x"], "c": [1.5]})
SECOND = pl.DataFrame({"a": [1.0], "c": [1.5], "d": [True]})


def test_first_run_has_nothing_to_compare() -> None:
    ingest(FIRST)
    assert not schema_changes.report_changes()
    assert read_json(schema_changes.REPORT)["compared"] is False


def test_removed_added_and_retyped_columns_are_reported() -> None:
    ingest(FIRST)
    schema_changes.record_schema()
    ingest(SECOND)
    for _ in range(2):  # The first of these runs did not complete.
        assert str(schema_changes.report_changes()) == "removed b; added d; retyped a: Int64 → Float64"
    found = read_json(schema_changes.REPORT)
    assert (found["removed"], found["added"], found["retyped"]) == (["b"], ["d"], ["a: Int64 → Float64"])
    schema_changes.record_schema()
    assert not schema_changes.report_changes()


def test_order_of_columns_is_no_change() -> None:
    assert not compare_schemas({"a": "Int64", "b": "String"}, {"b": "String", "a": "Int64"})


@pytest.mark.parametrize("state", ["", "[]", "{"])
def test_damaged_state_counts_as_a_first_run(state: str) -> None:
    schema_changes.STATE_FILE.parent.mkdir()
    schema_changes.STATE_FILE.write_text(state)
    ingest(FIRST)
    assert not schema_changes.report_changes()


def test_report_of_an_older_ingest_is_not_compared() -> None:
    ingest(FIRST)
    schema_changes.record_schema()
    write_json(paths.REPORTS / "ingest.json", {"rows": 1})
    schema_changes.record_schema()
    assert not schema_changes.report_changes()
    ingest(SECOND)
    assert schema_changes.report_changes()
