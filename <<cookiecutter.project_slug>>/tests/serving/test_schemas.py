"""Any contract gives a request model, whatever its columns are called."""

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from << cookiecutter.package_name >>.contract import MISSING, Column, Contract, from_rows
from << cookiecutter.package_name >>.files import canonical
from << cookiecutter.package_name >>.profile import build
from << cookiecutter.package_name >>.serving.problems import Problem
from << cookiecutter.package_name >>.serving.schemas import Schema

TARGET = Column(name="y", type="boolean", role="target")


def schema_of(*columns: Column, rows: list[dict[str, Any]]) -> Schema:
    """The request model of a contract with these columns, its reference being these rows."""
    contract = Contract(name="any", columns=(*columns, TARGET))
    profile = build(contract, from_rows(contract.inputs, rows), np.zeros(len(rows)))
    return Schema(contract, profile, max_instances=10)


def body(**row: Any) -> bytes:
    return canonical({"instances": [row]}).encode()


@pytest.mark.parametrize(
    "name", ["class", "model_config", "json", "copy", "_private", "two words", "größe", "a.b", "0"]
)
def test_a_column_may_have_any_name(name: str) -> None:
    schema = schema_of(Column(name=name, type="float"), rows=[{name: 1.5}])
    assert schema.example == {name: 1.5}
    assert schema.instances(body(**{name: 2.5})) == [{name: 2.5}]


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


def test_without_a_range_the_bounds_are_what_the_model_can_see() -> None:
    columns = (Column(name="x", type="float"), Column(name="n", type="integer"))
    schema = schema_of(*columns, rows=[{"x": 1.0, "n": 1}])
    described = TypeAdapter(schema.predict_request).json_schema()
    assert described["$defs"]["Instance"]["properties"]["x"]["maximum"] == float(np.finfo(np.float32).max)
    with pytest.raises(Problem):
        schema.instances(body(x=1e39, n=1))
    with pytest.raises(Problem):
        schema.instances(body(x=1.0, n=2**53 + 1))


COLUMNS = (
    Column(name="key", type="string", role="id"),
    Column(name="number", type="float", range=(10, 6000)),
    Column(name="count", type="integer", range=(1940, 2030), nullable=True),
    Column(name="closed", type="string", categories=("EWR", "JFK", "LGA")),
    Column(name="open", type="string", categories=("UA", "AA"), unseen=0.01),
    Column(name="when", type="datetime", role="time"),
    Column(name="note", type="string", role="ignored"),
)
ROW = {"number": 700.0, "count": 1999, "closed": "JFK", "open": "UA", "when": "2013-06-15T08:30:00"}
RESERVED = "is reserved for missing values; leave the field out, or send null, where there is none"
NO_MOMENT = "must be an ISO 8601 date and time, such as 2013-06-15T08:30:00"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"number": "5"}, "must be a number"),
        ({"number": True}, "must be a number"),
        ({"number": None}, "must not be null"),
        ({"number": 7000}, "must be <= 6000"),
        ({"number": 9.5}, "must be >= 10"),
        ({"count": 1999.5}, "must be an integer"),
        ({"count": "1999"}, "must be an integer"),
        ({"count": 10**30}, "must be <= 2030"),
        ({"closed": "XXX"}, "must be one of 'EWR', 'JFK' or 'LGA'"),
        ({"closed": 3}, "must be one of 'EWR', 'JFK' or 'LGA'"),
        ({"open": 5}, "must be a string"),
        ({"when": 1372636800}, "must be a string"),
        ({"when": "1372636800"}, NO_MOMENT),
        ({"when": "yesterday"}, NO_MOMENT),
        ({"when": "0001-01-01T00:00+05:00"}, NO_MOMENT),
        ({"key": "a\x00b"}, "must not contain a NUL character"),
        ({"open": "x" * 10_001}, "must have at most 10000 characters"),
        ({"open": MISSING}, RESERVED),
        ({"key": MISSING}, RESERVED),
        ({"y": True}, "is what the model predicts; leave it out"),
        ({"note": "late"}, "is ignored by the model; leave it out"),
        ({"numbre": 1}, "unknown field; did you mean 'number'?"),
        ({"quite other": 1}, "unknown field; known: closed, count, key, number, open, when"),
    ],
)
def test_a_value_that_breaks_the_contract_is_named_with_its_rule(change: dict[str, Any], rule: str) -> None:
    schema = schema_of(*COLUMNS, rows=[ROW])
    with pytest.raises(Problem) as refused:
        schema.instances(body(**{**ROW, **change}))
    assert refused.value.status == 422
    assert [(fault["field"], fault["rule"]) for fault in refused.value.extra["errors"]] == [(next(iter(change)), rule)]


@pytest.mark.parametrize(
    "change",
    [
        {"number": 700},
        {"count": None},
        {"open": "an unseen one"},
        {"when": "2013-06-15"},
        {"when": "2013-06-15T08:30:00.25+02:00"},
        {"when": "2013-06-15T08:30:00Z"},
        {"key": "any"},
        {"key": None},
    ],
)
def test_a_value_that_keeps_the_contract_is_taken_as_it_came(change: dict[str, Any]) -> None:
    schema = schema_of(*COLUMNS, rows=[ROW])
    assert schema.instances(body(**{**ROW, **change})) == [{**ROW, **change}]


def test_values_are_not_made_to_fit() -> None:
    schema = schema_of(Column(name="flag", type="boolean"), rows=[{"flag": True}])
    for value in (1, 0, "true", "yes", None):
        with pytest.raises(Problem) as refused:
            schema.instances(body(flag=value))
        assert refused.value.status == 422


def test_a_million_faults_cost_no_more_than_the_first() -> None:
    column = Column(name="x", type="float")
    contract = Contract(name="any", columns=(column, TARGET))
    profile = build(contract, from_rows(contract.inputs, [{"x": 1.0}]), np.zeros(1))
    schema = Schema(contract, profile, max_instances=100_000)
    with pytest.raises(Problem) as refused:
        schema.instances(canonical({"instances": [{}] * 100_000}).encode())
    assert len(refused.value.extra["errors"]) == 1
