"""The contract rejects contradictions and defines one array type for each column type."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_ml.core.contract import (
    FLOAT_LIMIT,
    INTEGER_LIMIT,
    SCORE_COLUMNS,
    Column,
    Contract,
    Label,
    Task,
    columns_from_rows,
    is_missing,
    parse_timestamp,
    to_array,
    to_naive_utc,
)
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError

GOOD: list[dict[str, Any]] = [
    {"name": "key", "type": "string", "role": "id"},
    {"name": "at", "type": "datetime", "role": "time"},
    {"name": "size", "type": "float", "range": [0, 10]},
    {"name": "colour", "type": "string", "categories": ["red", "blue"], "max_unknown_share": 0.1},
    {"name": "sold", "type": "boolean", "role": "target"},
]


def make(*columns: dict[str, Any], without: str = "") -> Contract:
    kept = [column for column in GOOD if column["name"] not in {without, *(new["name"] for new in columns)}]
    return config_model.parse({"name": "things", "columns": [*kept, *columns]}, Contract, "contract.yaml")


def test_the_project_s_own_contract_can_be_used(contract: Contract) -> None:
    assert contract.task == "binary"
    assert contract.target not in contract.inputs
    assert len({column.name for column in contract.columns}) == len(contract.columns)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"name": "size", "type": "number"}, "columns.4.type: Input should be 'float', 'integer'"),
        ({"name": "size", "type": "float", "role": "label"}, "columns.4.role: "),
        ({"name": "", "type": "float"}, "columns.5.name: "),
        ({"name": "size", "type": "float", "range": [10, 0]}, "'size': the range .10.0, 0.0. has its ends swapped"),
        ({"name": "size", "type": "string", "range": [0, 1]}, "'size': a range needs type float or integer"),
        ({"name": "size", "type": "float", "range": [0, float("inf")]}, "columns.4.range.1: .*finite"),
        (
            {"name": "size", "type": "float", "datetime_features": ["hour"]},
            "'size': 'datetime_features' needs type datetime",
        ),
        (
            {"name": "size", "type": "datetime", "datetime_features": ["hour", "hour"]},
            "a datetime feature appears twice",
        ),
        ({"name": "size", "type": "datetime", "datetime_features": ["minute"]}, "columns.4.datetime_features.0: "),
        (
            {"name": "size", "type": "float", "free_text": True},
            "'size': 'free_text' needs type string without categories",
        ),
        (
            {"name": "size", "type": "string", "free_text": True, "categories": ["a"]},
            "'size': 'free_text' needs type string",
        ),
        ({"name": "size", "type": "float", "max_unknown_share": 0.5}, "'size': 'max_unknown_share' needs categories"),
        ({"name": "size", "type": "float", "max_unknown_share": 1.5}, "columns.4.max_unknown_share: "),
        ({"name": "colour", "type": "float", "categories": ["red"]}, "'colour': categories need type string"),
        ({"name": "colour", "type": "string", "categories": ["red", "red"]}, "'colour': a category appears twice"),
        (
            {"name": "colour", "type": "string", "categories": ["red", 1]},
            "column .*: the category 1 is not of type string",
        ),
        ({"name": "colour", "type": "string", "categories": ["__missing__"]}, "'__missing__' is reserved"),
        ({"name": "at", "type": "string", "role": "time"}, "'at': role time needs type datetime"),
        ({"name": "at", "type": "datetime", "role": "time", "nullable": True}, "'at': every row needs its time"),
        ({"name": "key", "type": "float", "role": "id"}, "'key': role id needs type string or integer"),
        ({"name": "key", "type": "string", "role": "id", "nullable": True}, "'key': every row needs its id"),
        ({"name": "key2", "type": "string", "role": "id"}, "role id is given to 2 columns .key, key2.; give it to one"),
        (
            {"name": "size", "type": "float", "nulable": True},
            "unknown key 'columns.4.nulable'; did you mean 'nullable'",
        ),
        (
            {"name": "size", "type": "float", "parse": {"na_value": ["x"]}},
            "unknown key 'columns.4.parse.na_value'; did you mean 'na_values'",
        ),
        ({"name": "size", "type": "float", "parse": {"decimal": ";"}}, "columns.4.parse.decimal: "),
        ({"name": "size", "type": "float", "parse": {"decimal": ",", "thousands": ","}}, "are both ','"),
        ({"name": "size", "type": "string", "parse": {"decimal": ","}}, "parse.decimal needs type float or integer"),
        ({"name": "size", "type": "float", "parse": {"true_values": ["ja"]}}, "parse.true_values needs type boolean"),
        ({"name": "size", "type": "float", "parse": {"date_formats": ["%Y-%m"]}}, "date_formats needs type datetime"),
        ({"name": "size", "type": "datetime", "parse": {"date_formats": ["%Q"]}}, "unknown directive '%Q'"),
        ({"name": "size", "type": "datetime", "parse": {"date_formats": ["epoch_s"]}}, "epoch_s counts from UTC"),
        ({"name": "size", "type": "datetime", "parse": {"na_values": [" x"]}}, "' x' never occurs; write 'x'"),
        (
            {"name": "size", "type": "float", "parse": {"symbols": ["5%"]}},
            "'5%' begins or ends with a part of a number",
        ),
        (
            {"name": "size", "type": "boolean", "parse": {"true_values": ["Ja"], "false_values": ["ja"]}},
            "'ja' appears twice in na_values, true_values and false_values",
        ),
        ({"name": "size", "type": "float", "time_zone": "UTC"}, "'size': time_zone needs type datetime"),
        ({"name": "size", "type": "datetime", "time_zone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"name": "e\u0301", "type": "float"}, "is not in NFC; write it as 'é'"),
        ({"name": "size", "type": "string", "categories": ["e\u0301"]}, "is not in NFC; write it as 'é'"),
        ({"name": "size", "type": "string", "role": "weight"}, "'size': role weight needs type float or integer"),
        ({"name": "size", "type": "float", "role": "weight", "nullable": True}, "every row needs its weight"),
        *(({"name": name, "type": "float"}, f"'{name}': scoring adds a column of this name") for name in SCORE_COLUMNS),
    ],
)
def test_a_contradiction_is_rejected_by_name(column: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(column)


def test_duplicate_column_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"duplicate column 'size'"):
        config_model.parse({"name": "things", "columns": [*GOOD, GOOD[2]]}, Contract, "contract.yaml")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "columns: "),
        ([{"name": "size", "type": "float"}], "no column has role target"),
        ([{"name": "sold", "type": "boolean", "role": "target"}], "no column has role feature"),
    ],
)
def test_contract_without_target_or_features_is_rejected(columns: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_model.parse({"name": "things", "columns": columns}, Contract, "contract.yaml")


TARGETS: list[tuple[dict[str, Any], Task, tuple[Label, ...]]] = [
    ({"type": "boolean"}, "binary", (False, True)),
    ({"type": "string", "categories": ["no", "yes"]}, "binary", ("no", "yes")),
    ({"type": "string", "categories": ["a", "b", "c"]}, "multiclass", ("a", "b", "c")),
    ({"type": "integer", "categories": [3, 1, 2]}, "multiclass", (3, 1, 2)),
    ({"type": "integer"}, "regression", ()),
    ({"type": "float", "range": [0, 1]}, "regression", ()),
]


@pytest.mark.parametrize(("target", "task", "classes"), TARGETS)
def test_the_target_says_what_kind_of_prediction_is_asked_for(
    target: dict[str, Any], task: Task, classes: tuple[Label, ...]
) -> None:
    contract = make({"name": "sold", "role": "target", **target})
    assert (contract.task, contract.classes) == (task, classes)
    values = to_array(contract.target, [*(classes or (0.25, 7)), None])
    assert contract.encode_target(values)[:-1].tolist() == ([*range(len(classes))] or [0.25, 7.0])
    assert np.isnan(contract.encode_target(values)[-1])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"type": "string"}, "is string without categories; list its classes"),
        ({"type": "datetime"}, "is datetime without categories"),
        ({"type": "string", "categories": ["only"]}, "has only one class"),
        ({"type": "string", "categories": ["a", "b"], "max_unknown_share": 0.1}, "every row needs a class"),
        ({"type": "integer", "categories": [1, "b"]}, "the category 'b' is not of type integer"),
        ({"type": "float", "categories": [1, 2]}, "categories need type string, not float"),
    ],
)
def test_a_target_that_asks_for_no_prediction_is_rejected(target: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make({"name": "sold", "role": "target", **target})


def test_missing_column_is_reported_with_the_nearest_name() -> None:
    assert make()["size"].range == (0, 10)
    with pytest.raises(ConfigError, match=r"no column 'sise'; did you mean 'size'"):
        make()["sise"]


def test_the_inputs_are_features_and_time_alone() -> None:
    contract = make({"name": "note", "type": "string", "role": "ignored"})
    assert [column.name for column in contract.inputs] == ["at", "size", "colour"]


def test_the_fingerprint_follows_meaning_and_not_layout(tmp_path: Path) -> None:
    texts = [
        "name: a\ncolumns:\n- {name: x, type: float}\n- {name: y, type: boolean, role: target}",
        "# why\ncolumns:\n  - type: float\n    name: 'x'\n    role: feature\n"
        "  - {role: target, name: y, type: boolean}\nname: a",
        "name: a\ncolumns:\n- {name: x, type: float, nullable: true}\n- {name: y, type: boolean, role: target}",
    ]
    prints = []
    for text in texts:
        (tmp_path / "contract.yaml").write_text(text)
        prints.append(Contract.load(tmp_path / "contract.yaml").fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_contract_of_an_older_bundle_opens_with_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(
        """
version: 1
name: t
description: ''
columns:
  - {name: at, type: datetime, role: time, parts: [hour]}
  - {name: note, type: string, text: true, nullable: true}
  - {name: kind, type: string, categories: [a, b], unseen: 0.1}
  - {name: y, type: boolean, role: target}
"""
    )
    found = Contract.load(path, accept_renamed=True)
    assert found.fingerprint() == "e9371a1ef61f9986be3cc025b01d27b3d2734df4fd4c3780933495dd0225ebc3"
    with pytest.raises(ConfigError, match=r"'columns.0.parts' was renamed to 'columns.0.datetime_features'"):
        Contract.load(path)


def test_fingerprint_of_an_older_contract_stays() -> None:
    assert make().fingerprint() == "3cafaac7f2378d12fb14d1319aa5c6517c847a22a210bf43d09c5d8166a24745"
    parsed = make({"name": "size", "type": "float", "parse": {"decimal": ","}})
    assert parsed.fingerprint() != make({"name": "size", "type": "float"}).fingerprint()


@pytest.mark.parametrize(
    ("column", "limits"),
    [
        (Column(name="x", type="float"), (-FLOAT_LIMIT, FLOAT_LIMIT)),
        (Column(name="x", type="integer"), (-INTEGER_LIMIT, INTEGER_LIMIT)),
        (Column(name="x", type="float", range=(0, 1e300)), (0, FLOAT_LIMIT)),
        (Column(name="x", type="integer", range=(1, 5)), (1, 5)),
    ],
)
def test_column_limits_stay_within_the_number_type(column: Column, limits: tuple[float, float]) -> None:
    assert column.limits == limits


@pytest.mark.parametrize("kind", ["float", "integer", "boolean", "string", "datetime"])
def test_a_missing_value_of_every_type_is_seen_as_missing(kind: Any) -> None:
    values = {"float": 1.5, "integer": 1, "boolean": True, "string": "a", "datetime": datetime(2013, 1, 1)}
    array = to_array(Column(name="x", type=kind), [values[kind], None])
    assert is_missing(array).tolist() == [False, True]
    assert is_missing(to_array(Column(name="x", type=kind), [])).tolist() == []


def test_an_empty_text_is_a_value() -> None:
    assert is_missing(to_array(Column(name="x", type="string"), ["", None])).tolist() == [False, True]


def test_rows_become_columns_and_an_absent_key_counts_as_missing() -> None:
    columns = columns_from_rows(
        make().inputs, [{"at": "2013-06-15T08:30:00", "size": 1, "colour": "red"}, {"colour": None}]
    )
    assert columns["at"].tolist() == [datetime(2013, 6, 15, 8, 30), None]
    np.testing.assert_array_equal(columns["size"], [1.0, np.nan])
    assert columns["colour"].tolist() == ["red", None]


@pytest.mark.parametrize(
    "text",
    ["2013-06-15T08:30:00", "2013-06-15 08:30", "2013-06-15T08:30:00Z", "2013-06-15T04:30-04:00", "20130615T0830"],
)
def test_one_timestamp_has_one_value_in_every_notation(text: str) -> None:
    assert parse_timestamp(text) == datetime(2013, 6, 15, 8, 30)
    assert to_naive_utc(datetime(2013, 6, 15, 8, 30, tzinfo=UTC)) == parse_timestamp(text)


@pytest.mark.parametrize("text", ["", "today", "15/06/2013", "2013-13-01", "0001-01-01T00:00+14:00"])
def test_invalid_timestamp_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be an ISO 8601 date and time"):
        parse_timestamp(text)
