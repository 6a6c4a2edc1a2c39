"""Each rule of the contract has one message wherever it is checked."""

from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from flywheel_ml.core.contract import MISSING, Column, Contract
from flywheel_ml.core.parsing.rules import REQUIRED, build_rules
from flywheel_ml.data.tables import DTYPES
from flywheel_ml.data.validate import find_violations
from flywheel_ml.flows import scoring
from flywheel_ml.serving.codecs.arrow_columns import CheckedColumn
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.schema.row_validator import RowValidator

CASES: list[tuple[Column, Any, str]] = [
    (Column(name="x", type="float", range=(0, 9.5), unit="kg"), 10.0, "must be between 0 and 9.5 kg"),
    (Column(name="x", type="float"), 1e39, "must be between -3.40282e+38 and 3.40282e+38, the limits of what the"),
    (Column(name="x", type="integer", range=(0.5, 9.5)), 0, "must be between 1 and 9"),
    (Column(name="x", type="string", categories=("a", "b")), "c", "must be one of 'a' or 'b'"),
    (Column(name="x", type="string"), MISSING, "must not be '__missing__', which is reserved for missing values"),
    (Column(name="x", type="float"), None, REQUIRED),
]


@pytest.mark.parametrize(("column", "value", "message"), CASES)
def test_one_error_has_one_message_everywhere(column: Column, value: Any, message: str) -> None:
    target = Column(name="y", type="boolean", role="target")
    contract, dtype = Contract(name="any", columns=(column, target)), DTYPES[column.type]
    table = pl.DataFrame({"x": pl.Series([value], dtype=dtype), "y": [True]})
    reader = RowValidator(contract)
    with pytest.raises(Problem) as refused:
        reader.validate([{"x": value}])
    cells = pa.chunked_array([pa.array([value], pa.large_string() if column.type == "string" else pa.float64())])
    found = {
        "table": find_violations(table, contract)[0].rule,
        "request": refused.value.extra["errors"][0]["rule"],
        "arrow": CheckedColumn(reader, "x", "x", cells, 1000).describe_first_error()["rule"],
        "batch": next(rule for rule, rows in scoring.count_violations(table, contract).items() if rows).removeprefix(
            "x: "
        ),
    }
    assert len(set(found.values())) == 1, found
    assert found["table"].startswith(message)


def test_an_id_is_one_that_every_log_can_hold() -> None:
    rules = {rule.kind: rule.message for rule in build_rules(Column(name="key", type="string", role="id"))}
    assert rules.keys() == {"reserved", "length", "null_character"}


def test_many_categories_are_not_all_listed() -> None:
    (rule,) = build_rules(Column(name="x", type="string", categories=tuple(f"c{at}" for at in range(100))))
    assert rule.message.endswith("… (100 in the contract)")
    assert len(rule.message) < 120


def test_a_weight_is_not_negative() -> None:
    (rule,) = build_rules(Column(name="w", type="float", role="weight"))
    assert rule.message == "must not be negative"
