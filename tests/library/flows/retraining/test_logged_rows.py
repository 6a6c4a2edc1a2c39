"""Labelled rows of the log become rows of the table: the right ones, once, and only if they keep the contract."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.flows.retraining.logged_rows import read_labelled_rows
from flywheel_ml.prediction_log import Outcome, Prediction, Writer, dumps, new_id, now_us
from flywheel_ml.utils.errors import ContractViolation

START = datetime(2026, 1, 1)
COLUMNS = (
    Column(name="order", type="string", role="id"),
    Column(name="at", type="datetime", role="time"),
    Column(name="size", type="integer"),
    Column(name="kind", type="string", categories=("a", "b"), nullable=True),
    Column(name="weight", type="float", role="weight"),
    Column(name="note", type="string", role="ignored", nullable=True),
    Column(name="late", type="boolean", role="target"),
)
CONTRACT = Contract(name="orders", columns=COLUMNS)
TABLE = pl.DataFrame(
    {"order": ["o1", "o2"], "at": [START, START + timedelta(days=1)], "size": [1, 2], "kind": ["a", None]},
    schema_overrides={"at": pl.Datetime("us")},
)


def log(path: Path, *rows: tuple[dict[str, Any], Any]) -> str:
    """Log rows, each as its inputs and its label."""
    entries: list[Prediction | Outcome] = []
    for inputs, label in rows:
        name = new_id()
        entries.append(
            Prediction(name, now_us(), None, None, "champion", "1", None, dumps(inputs), "{}", 0.5, 1, degraded=False)
        )
        if label is not None:
            entries.append(Outcome(name, now_us(), json.dumps(label)))
    with Writer(str(path), "serve") as writer:
        writer.append(entries).result(timeout=30)
    return str(path)


def row(day: float, name: str | None = None, **more: Any) -> dict[str, Any]:
    at = (START + timedelta(days=day)).isoformat()
    return {**({"order": name} if name else {}), "at": at, "size": 3, "kind": "b", **more}


def test_labelled_rows_become_rows_of_the_table(tmp_path: Path) -> None:
    target = log(tmp_path, (row(2, "o3"), True), (row(3, "o4", kind=None, note="x"), False), (row(4, "o5"), None))
    found = read_labelled_rows(target, CONTRACT, TABLE, None)
    assert found.schema["at"] == pl.Datetime("us")
    assert found.rows() == [
        ("o3", START + timedelta(days=2), 3, "b", 1.0, None, True),
        ("o4", START + timedelta(days=3), 3, None, 1.0, "x", False),
    ]


def test_rows_of_the_table_s_span_and_from_the_date_on_are_left_out(tmp_path: Path) -> None:
    target = log(tmp_path, (row(0.5, "o3"), True), (row(2, "o4"), True), (row(5, "o5"), True))
    found = read_labelled_rows(target, CONTRACT, TABLE, START + timedelta(days=5))
    assert found["order"].to_list() == ["o4"]


def test_rows_are_taken_once_and_never_twice(tmp_path: Path) -> None:
    target = log(tmp_path, (row(2, "o2"), True), (row(2, "o3"), True), (row(3, "o3"), False), (row(4), True))
    found = read_labelled_rows(target, CONTRACT, TABLE, None)
    # o2 is in the table; of o3, the later prediction counts; a row without an id gets that of its prediction.
    assert found["late"].to_list() == [False, True]
    assert found["order"].n_unique() == 2


def test_rows_without_an_id_are_equal_by_their_inputs(tmp_path: Path) -> None:
    columns = tuple(column for column in COLUMNS if column.role not in ("id", "time"))
    target = log(tmp_path, ({"size": 1, "kind": "a"}, True), ({"size": 2, "kind": None}, True), ({"size": 9}, True))
    found = read_labelled_rows(target, Contract(name="orders", columns=columns), TABLE.drop("order", "at"), None)
    assert found["size"].to_list() == [9]


@pytest.mark.parametrize(("inputs", "label"), [(row(2, "o3", kind="z"), True), (row(2, "o3", size=None), True)])
def test_rows_that_break_the_contract_are_refused(inputs: dict[str, Any], label: Any, tmp_path: Path) -> None:
    target = log(tmp_path, (inputs, label))
    with pytest.raises(ContractViolation, match=r"prediction log break contract.yaml \((kind|size): 1 row: must"):
        read_labelled_rows(target, CONTRACT, TABLE, None)


def test_empty_log_gives_no_rows(tmp_path: Path) -> None:
    assert read_labelled_rows(str(tmp_path), CONTRACT, TABLE, None).is_empty()
