"""Request schemas of contracts with any column names, and values as the user's table writes them."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter, ValidationError

from flywheel_ml.core.contract import MISSING, Column, Contract, Parse, columns_from_rows
from flywheel_ml.core.parsing.rules import REQUIRED
from flywheel_ml.core.profile import build
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.errors.validation_errors import MAX_LISTED_ERRORS
from flywheel_ml.serving.schema.request_schema import Schema, _build_type
from flywheel_ml.serving.schema.row_validator import build_cell_reader
from flywheel_ml.utils.files import canonical_json

TARGET = Column(name="y", type="boolean", role="target")


def schema_of(*columns: Column, rows: list[dict[str, Any]], optional: Sequence[str] = ()) -> Schema:
    """The request model of a contract with these columns, its reference being these rows."""
    contract = Contract(name="any", columns=(*columns, TARGET))
    profile = build(contract, columns_from_rows(contract.inputs, rows), np.zeros(len(rows)))
    return Schema(contract, profile, 10, optional)


def body(**row: Any) -> bytes:
    return canonical_json({"instances": [row]}).encode()


@pytest.mark.parametrize(
    "name", ["class", "model_config", "json", "copy", "_private", "two words", "größe", "a.b", "0"]
)
def test_a_column_may_have_any_name(name: str) -> None:
    schema = schema_of(Column(name=name, type="float"), rows=[{name: 1.5}])
    assert schema.example == {name: 1.5}
    assert schema.parse_instances(body(**{name: 2.5})) == [{name: 2.5}]


def test_the_example_is_a_typical_row() -> None:
    columns = (
        Column(name="number", type="float", range=(0, 100)),
        Column(name="count", type="integer"),
        Column(name="kind", type="string"),
        Column(name="flag", type="boolean"),
        Column(name="when", type="datetime"),
        Column(name="never", type="float", nullable=True),
    )
    rows = [
        {
            "number": float(at),
            "count": at,
            "kind": "ab"[at > 3],
            "flag": at > 1,
            "when": f"2013-06-{at + 1:02}T08:30:00",
            "never": None,
        }
        for at in range(9)
    ]
    assert schema_of(*columns, rows=rows).example == {
        "number": 4.0,
        "count": 4,
        "kind": "b",
        "flag": True,
        "when": "2013-06-05T08:30:00",
        "never": None,
    }


def test_default_bounds_are_those_of_the_model() -> None:
    columns = (Column(name="x", type="float"), Column(name="n", type="integer"))
    schema = schema_of(*columns, rows=[{"x": 1.0, "n": 1}])
    described = TypeAdapter(schema.predict_request).json_schema()
    assert described["$defs"]["Instance"]["properties"]["x"]["maximum"] == float(np.finfo(np.float32).max)
    with pytest.raises(Problem):
        schema.parse_instances(body(x=1e39, n=1))
    with pytest.raises(Problem):
        schema.parse_instances(body(x=1.0, n=2**53 + 1))


COLUMNS = (
    Column(name="key", type="string", role="id"),
    Column(name="number", type="float", range=(10, 6000), unit="mi"),
    Column(name="count", type="integer", range=(1940, 2030), nullable=True),
    Column(name="closed", type="string", categories=("EWR", "JFK", "LGA")),
    Column(name="open", type="string", categories=("UA", "AA"), max_unknown_share=0.01),
    Column(name="when", type="datetime", role="time"),
    Column(name="note", type="string", role="ignored"),
)
ROW = {"number": 700.0, "count": 1999, "closed": "JFK", "open": "UA", "when": "2013-06-15T08:30:00"}
RESERVED = "must not be '__missing__', which is reserved for missing values"
NO_DATE = "must be an ISO 8601 date and time, such as 2013-06-15T08:30:00"
TARGET_RULE = "is the target, which the model predicts; leave it out, and send it to /feedback once it is known"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"number": "five"}, "must be a number"),
        ({"number": True}, "must be a number"),
        ({"number": None}, REQUIRED),
        ({"number": "n/a"}, REQUIRED),
        ({"number": 7000}, "must be between 10 and 6000 mi"),
        ({"number": "9.5"}, "must be between 10 and 6000 mi"),
        ({"count": 1999.5}, "must be an integer"),
        ({"count": True}, "must be an integer"),
        ({"count": 2031}, "must be between 1940 and 2030"),
        ({"closed": "XXX"}, "must be one of 'EWR', 'JFK' or 'LGA'"),
        ({"closed": 3}, "must be one of 'EWR', 'JFK' or 'LGA'"),
        ({"closed": ""}, REQUIRED),
        ({"open": 5.5}, "must be a string"),
        ({"open": MISSING}, RESERVED),
        ({"when": 1372636800}, NO_DATE),
        ({"when": "1372636800"}, NO_DATE),
        ({"when": "1612120800123"}, NO_DATE),
        ({"when": "yesterday"}, NO_DATE),
        ({"key": "a\x00b"}, "must not contain a NUL character"),
        ({"key": "x" * 10_001}, "must have at most 10000 characters"),
        ({"key": MISSING}, RESERVED),
        ({"y": True}, TARGET_RULE),
        ({"numbre": 1}, "unknown field; did you mean 'number'?"),
        ({"quite other": 1}, "unknown field; known: closed, count, key, number, open, when"),
    ],
)
def test_a_value_that_breaks_the_contract_is_named_with_its_rule(change: dict[str, Any], rule: str) -> None:
    schema = schema_of(*COLUMNS, rows=[ROW])
    with pytest.raises(Problem) as refused:
        schema.parse_instances(body(**{**ROW, **change}))
    assert refused.value.status == 422
    assert [(fault["field"], fault["rule"]) for fault in refused.value.extra["errors"]] == [(next(iter(change)), rule)]


@pytest.mark.parametrize("when", ["2013-06-15T08:30:00Z", "2013-06-15 08:30:00+02:00"])
def test_an_offset_is_rejected_where_no_zone_is_declared(when: str) -> None:
    with pytest.raises(Problem) as refused:
        schema_of(*COLUMNS, rows=[ROW]).parse_instances(body(**{**ROW, "when": when}))
    (fault,) = refused.value.extra["errors"]
    assert "`time_zone`" in fault["rule"]
    assert "contract.yaml" in fault["rule"]


@pytest.mark.parametrize(
    ("zone", "when", "understood"),
    [
        ("UTC", "2013-06-15T08:30:00+02:00", "2013-06-15T06:30:00"),
        ("Europe/Berlin", "2013-06-15T08:30:00Z", "2013-06-15T10:30:00"),
        ("local", "2013-06-15T08:30:00+02:00", "2013-06-15T08:30:00"),
        ("Europe/Berlin", "2013-06-15T08:30:00", "2013-06-15T08:30:00"),
    ],
)
def test_an_offset_is_converted_to_the_zone_that_is_declared(zone: str, when: str, understood: str) -> None:
    schema = schema_of(Column(name="when", type="datetime", time_zone=zone), rows=[{"when": "2013-06-15T08:30:00"}])
    assert schema.parse_instances(body(when=when)) == [{"when": understood}]
    described = TypeAdapter(schema.predict_request).json_schema()["$defs"]["Instance"]["properties"]["when"]
    assert ("format" in described) == (zone != "local")


def test_offsets_are_not_described_without_a_time_zone() -> None:
    described = TypeAdapter(schema_of(*COLUMNS, rows=[ROW]).predict_request).json_schema()
    when = described["$defs"]["Instance"]["properties"]["when"]
    assert "format" not in when
    assert re.search(when["pattern"], when["examples"][0])
    assert not re.search(when["pattern"], "2013-06-15T08:30:00Z")
    assert "without an offset" in when["description"]


@pytest.mark.parametrize(
    ("change", "understood"),
    [
        ({"number": 700}, 700.0),
        ({"number": " 7e2 "}, 700.0),
        ({"number": "700"}, 700.0),
        ({"count": None}, None),
        ({"count": 1999.0}, 1999),
        ({"count": "1999.0"}, 1999),
        ({"count": "NaN"}, None),
        ({"count": "  "}, None),
        ({"closed": " JFK "}, "JFK"),
        ({"open": "an unseen one"}, "an unseen one"),
        ({"open": 5}, "5"),
        ({"open": "cafe\u0301"}, "café"),
        ({"when": "2013-06-15"}, "2013-06-15T00:00:00"),
        ({"when": "2013-06-15 08:30"}, "2013-06-15T08:30:00"),
        ({"when": "2013-06-15T08:30:00.000"}, "2013-06-15T08:30:00"),
        ({"when": "2013-06-15T08:30:00.25"}, "2013-06-15T08:30:00.250000"),
        ({"key": "any"}, "any"),
        ({"key": 7}, "7"),
        ({"key": None}, None),
    ],
)
def test_value_is_parsed_as_in_the_table(change: dict[str, Any], understood: Any) -> None:
    schema = schema_of(*COLUMNS, rows=[ROW])
    (found,) = schema.parse_instances(body(**{**ROW, **change}))
    assert found == {**ROW, next(iter(change)): understood}
    assert {name: type(value) for name, value in found.items()}[next(iter(change))] is type(understood)


def test_columns_that_the_model_does_not_use_are_dropped() -> None:
    schema = schema_of(*COLUMNS, Column(name="w", type="float", role="weight"), rows=[ROW])
    assert schema.parse_instances(body(**ROW, note=["anything"], w="?")) == [ROW]


def test_renamed_column_is_accepted_under_either_name() -> None:
    columns = (
        Column(name="prediction_given", source="prediction", type="float"),
        Column(name="note", source="id", type="string", role="ignored"),
        Column(name="décidé", type="float", nullable=True),
    )
    schema = schema_of(*columns, rows=[{"prediction_given": 1.0, "décidé": 1.0}])
    for name in ("prediction", "prediction_given"):
        assert schema.parse_instances(body(**{name: 2.5, "id": "x"})) == [{"prediction_given": 2.5}]
    decomposed = {"de\u0301cide\u0301": 3, "prediction": 1}
    assert schema.parse_instances(body(**decomposed)) == [{"décidé": 3.0, "prediction_given": 1.0}]
    with pytest.raises(Problem) as refused:
        schema.parse_instances(body(prediction=1, prediction_given=1))
    assert [fault["rule"] for fault in refused.value.extra["errors"]] == [
        "is a duplicate of the column 'prediction_given'; send it once"
    ]


def test_the_time_is_required_only_where_a_feature_uses_it() -> None:
    columns = (Column(name="x", type="float"), Column(name="when", type="datetime", role="time", datetime_features=()))
    row = {"x": 1.5, "when": "2013-06-15T08:30:00"}
    with pytest.raises(Problem):
        schema_of(*columns, rows=[row]).parse_instances(body(x=1.5))
    schema = schema_of(*columns, rows=[row], optional=["when"])
    assert schema.parse_instances(body(x=1.5)) == [{"x": 1.5}]
    assert schema.parse_instances(body(**row)) == [row]


PARSED = (
    Column(name="owner", type="boolean", parse=Parse(true_values=("ja",), false_values=("nein",))),
    Column(name="price", type="float", nullable=True, parse=Parse(decimal=",", thousands=".", symbols=("€",))),
    Column(name="day", type="datetime", parse=Parse(date_formats=("%d.%m.%Y",))),
    Column(name="kind", type="string", nullable=True, parse=Parse(na_values=("keine",))),
    Column(name="level", type="float", nullable=True, parse=Parse(na_values=("-999",))),
)
PARSED_ROW = {"owner": True, "price": 1234.5, "day": "2013-06-15T00:00:00", "kind": "a", "level": 1.0}


@pytest.mark.parametrize(
    ("change", "understood"),
    [
        ({"owner": "Ja"}, True),
        ({"owner": "no"}, False),
        ({"owner": 0.0}, False),
        ({"price": "1.234,50 €"}, 1234.5),
        ({"price": "12"}, 12.0),
        ({"day": "15.06.2013"}, "2013-06-15T00:00:00"),
        ({"kind": "keine"}, None),
        ({"level": -999}, None),
        ({"level": -999.0}, None),
        ({"level": "-999"}, None),
    ],
)
def test_a_value_is_parsed_as_the_contract_says(change: dict[str, Any], understood: Any) -> None:
    schema = schema_of(*PARSED, rows=[PARSED_ROW])
    assert schema.parse_instances(body(**{**PARSED_ROW, **change})) == [{**PARSED_ROW, next(iter(change)): understood}]


CODED = (
    Column(name="zip", type="string", categories=("00123", "04000"), max_unknown_share=0.1),
    Column(name="garage", type="string", categories=("None", "Attached")),
)


@pytest.mark.parametrize(
    ("change", "understood"),
    [
        ({"zip": 123}, "00123"),
        ({"zip": 4000.0}, "04000"),
        ({"zip": "92"}, "00092"),
        ({"garage": None}, "None"),
        ({"garage": ""}, "None"),
    ],
)
def test_category_is_accepted_as_pandas_writes_it(change: dict[str, Any], understood: str) -> None:
    row = {"zip": "04000", "garage": "Attached"}
    schema = schema_of(*CODED, rows=[row])
    assert schema.parse_instances(body(**{**row, **change})) == [{**row, next(iter(change)): understood}]
    with pytest.raises(Problem):
        schema.parse_instances(body(zip="04000"))


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "column_1"])
def test_unnamed_column_is_found_by_its_position(name: str) -> None:
    schema = schema_of(Column(name="column_1", type="float"), rows=[{"column_1": 1.0}])
    assert schema.parse_instances(body(**{name: 1.0})) == [{"column_1": 1.0}]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2000, 3000),
    st.floats(-7000, 7000),
    st.sampled_from([-999, 2**53, 1e39, "", " JFK", "JFK", "UA", "keine", "NA", "é", "e\u0301", MISSING, "1.5", "1,5"]),
    st.datetimes(min_value=datetime(1900, 1, 1)).map(datetime.isoformat),
    st.text(max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(column=st.sampled_from([*COLUMNS[:6], *PARSED, *CODED]), value=VALUES)
def test_fast_validation_agrees_with_the_row_validator(column: Column, value: Any) -> None:
    """pydantic takes a value only if the reader gives the same; what the reader gives, pydantic takes."""
    read = build_cell_reader(column, required=not column.nullable and column.role != "id")
    short = TypeAdapter(_build_type(column), config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        taken = short.validate_python(value)
    except ValidationError:
        taken = None
    try:
        understood = read(value)
    except ValueError:
        assert taken is None
        return
    assert taken is None or (taken == understood and type(taken) is type(understood))
    assert understood is None or short.validate_python(understood) == understood


def test_validation_stops_at_the_error_limit() -> None:
    column = Column(name="x", type="float")
    contract = Contract(name="any", columns=(column, TARGET))
    profile = build(contract, columns_from_rows(contract.inputs, [{"x": 1.0}]), np.zeros(1))
    schema = Schema(contract, profile, max_instances=100_000)
    with pytest.raises(Problem) as refused:
        schema.parse_instances(canonical_json({"instances": [{}] * 100_000}).encode())
    assert len(refused.value.extra["errors"]) == MAX_LISTED_ERRORS
    assert refused.value.detail.startswith("at least 1000 values")
