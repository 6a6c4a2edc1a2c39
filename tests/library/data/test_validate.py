"""Every broken rule of the contract stops the pipeline and is reported with rows and examples."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_ml.cli.command import run_command
from flywheel_ml.core import paths
from flywheel_ml.core.contract import MISSING, Contract
from flywheel_ml.core.parsing.rules import REQUIRED, UNIQUE
from flywheel_ml.core.project import Project
from flywheel_ml.data import ingest, split, tables, validate
from flywheel_ml.data.validate import TableViolation, find_violations
from flywheel_ml.utils import config_model
from library.helpers.orders import SHOP
from library.helpers.project import PACKAGE, PROJECT


def put(frame: pl.DataFrame, column: str, values: dict[int, Any]) -> pl.DataFrame:
    """The frame with other values of one column in some rows."""
    changed = frame[column].to_list()
    for row, value in values.items():
        changed[row] = value
    return frame.with_columns(pl.Series(column, changed, dtype=frame.schema[column]))


def only(found: list[TableViolation]) -> TableViolation:
    assert len(found) == 1, found
    return found[0]


def test_a_table_that_keeps_the_contract_passes(orders: pl.DataFrame, shop: Contract) -> None:
    assert find_violations(orders, shop) == []
    assert find_violations(orders.head(1), shop) == []


def test_a_weight_below_zero_is_rejected() -> None:
    columns = [
        {"name": "x", "type": "float"},
        {"name": "times", "type": "float", "role": "weight"},
        {"name": "y", "type": "boolean", "role": "target"},
    ]
    contract = config_model.parse({"name": "weighed", "columns": columns}, Contract, "contract.yaml")
    table = pl.DataFrame({"x": [1.0, 2.0, 3.0], "times": [0.0, 2.5, -1.0], "y": [True, False, True]})
    assert find_violations(table.head(2), contract) == []
    assert str(only(find_violations(table, contract))) == "times: 1 row: must not be negative; first: -1.0 (row 2)"


def test_the_project_s_own_contract_can_be_kept(table: pl.DataFrame, contract: Contract) -> None:
    assert find_violations(table, contract) == []


@pytest.mark.parametrize(
    ("column", "values", "rule", "count", "first"),
    [
        ("order", {3: "o000", 7: "o000"}, UNIQUE, 3, (0, "'o000'")),
        ("order", {2: None}, REQUIRED, 1, (2, "no value")),
        ("placed", {2: None}, REQUIRED, 1, (2, "no value")),
        ("amount", {1: -0.01, 9: 1000.01}, "must be between 0 and 1000 EUR", 2, (1, "-0.01")),
        ("amount", {1: float("inf")}, "must be between 0 and 1000 EUR", 1, (1, "inf")),
        ("weight", {4: float("inf")}, "must be between -3.40282e+38 and 3.40282e+38, the limits", 1, (4, "inf")),
        ("weight", {4: float("-inf")}, "must be between -3.40282e+38 and 3.40282e+38, the limits", 1, (4, "-inf")),
        ("weight", {4: 1e39}, "must be between -3.40282e+38 and 3.40282e+38, the limits", 1, (4, "1e+39")),
        ("items", {0: 0, 1: 51}, "must be between 1 and 50", 2, (0, "0")),
        ("kind", {5: "used"}, "must be one of 'new' or 'old'", 1, (5, "'used'")),
        ("kind", {5: ""}, "must be one of 'new' or 'old'", 1, (5, "''")),
        ("kind", {5: "New"}, "must be one of 'new' or 'old'", 1, (5, "'New'")),
        (
            "region",
            dict.fromkeys(range(11), "east"),
            "must be one of 'north', 'south' or 'west', beyond the 10.0% that",
            11,
            (0, "'east'"),
        ),
        ("channel", {8: MISSING}, "must not be '__missing__', which is reserved", 1, (8, "'__missing__'")),
        ("returned", {8: None}, REQUIRED, 1, (8, "no value")),
    ],
)
def test_broken_rule_reports_column_rows_and_examples(
    orders: pl.DataFrame, shop: Contract, column: str, values: dict[int, Any], rule: str, count: int, first: Any
) -> None:
    found = only(find_violations(put(orders, column, values), shop))
    assert (found.column, found.rows, found.examples[0]) == (column, count, first)
    assert found.rule.startswith(rule)
    assert str(found).startswith(f"{column}: {count} row{'s' if count > 1 else ''}: {rule}")
    assert f"first: {first[1]} (row {first[0]})" in str(found)


def test_unknown_categories_within_the_tolerance_pass(orders: pl.DataFrame, shop: Contract) -> None:
    assert find_violations(put(orders, "region", dict.fromkeys(range(10), "east")), shop) == []


def test_tolerance_is_a_share_of_the_rows_that_have_a_value(orders: pl.DataFrame, shop: Contract) -> None:
    nullable = [{**column, "nullable": True} if column["name"] == "region" else column for column in SHOP["columns"]]
    contract = config_model.parse({**SHOP, "columns": nullable}, Contract, "contract.yaml")
    few = put(put(orders, "region", dict.fromkeys(range(50, 100), None)), "region", dict.fromkeys(range(6), "east"))
    assert only(find_violations(few, contract)).rows == 6


def test_missing_values_of_nullable_columns_pass_all_rules(orders: pl.DataFrame, shop: Contract) -> None:
    empty = orders.with_columns(
        pl.lit(None, dtype=orders.schema[name]).alias(name) for name in ("channel", "amount", "weight", "gift")
    )
    assert find_violations(empty, shop) == []


def test_missing_column_is_reported_with_the_likely_one(orders: pl.DataFrame, shop: Contract) -> None:
    found = {violation.column: violation for violation in find_violations(orders.rename({"amount": "amont"}), shop)}
    assert found["amount"].rule == "the column is missing; the table has others (did you mean 'amont'?)"
    assert found["amont"].rule == (
        "the column is not in the contract (did you mean 'amount'?); drop it, or add it with role ignored"
    )
    assert only(find_violations(orders.drop("amount"), shop)).rule == "the column is missing"


def test_an_extra_column_is_rejected(orders: pl.DataFrame, shop: Contract) -> None:
    found = only(find_violations(orders.with_columns(pl.lit(1).alias("zzz")), shop))
    assert (found.column, found.rows) == ("zzz", 0)
    assert "not in the contract" in found.rule


def test_value_of_another_type_is_reported_with_its_row(tmp_path: Path, orders: pl.DataFrame, shop: Contract) -> None:
    text = orders.with_columns(pl.col("items").cast(pl.String))
    put(text, "items", {3: "three", 5: "2.5"}).write_csv(tmp_path / "a.csv")
    found = only(find_violations(tables.read(tmp_path / "a.csv", shop), shop))
    assert (found.column, found.rule, found.rows) == ("items", "must be an integer", 2)
    assert found.examples == ((3, "'three'"), (5, "'2.5'"))


def test_column_of_another_type_is_reported_with_that_type(orders: pl.DataFrame, shop: Contract) -> None:
    found = only(find_violations(orders.with_columns(pl.lit(value=True).alias("items")), shop))
    assert (found.rule, found.rows) == ("must be an integer (the file says Boolean)", 100)


def test_a_mistyped_column_does_not_hide_what_the_others_broke(orders: pl.DataFrame, shop: Contract) -> None:
    broken = put(orders.drop("kind").with_columns(pl.lit("x").alias("items")), "amount", {1: -1.0, 2: -2.0})
    assert [(found.column, found.rows) for found in find_violations(broken, shop)] == [
        ("items", 100),
        ("amount", 2),
        ("kind", 0),
    ]


def test_each_rule_of_a_column_is_reported_separately(orders: pl.DataFrame, shop: Contract) -> None:
    broken = put(put(orders, "order", {1: "o000", 5: None, 9: MISSING}), "kind", {2: None, 3: MISSING, 4: "used"})
    told = {(found.column, found.rule): (found.rows, found.examples) for found in find_violations(broken, shop)}
    assert told == {
        ("order", UNIQUE): (2, ((0, "'o000'"), (1, "'o000'"))),
        ("order", REQUIRED): (1, ((5, "no value"),)),
        ("order", "must not be '__missing__', which is reserved for missing values"): (1, ((9, "'__missing__'"),)),
        ("kind", REQUIRED): (1, ((2, "no value"),)),
        ("kind", "must be one of 'new' or 'old'"): (2, ((3, "'__missing__'"), (4, "'used'"))),
    }


def test_examples_are_few_and_short(orders: pl.DataFrame, shop: Contract) -> None:
    found = only(find_violations(orders.with_columns(pl.lit("x" * 1_000_000).alias("kind")), shop))
    assert len(found.examples) == validate.MAX_EXAMPLES
    assert len(str(found)) < 1000


def test_personal_values_are_counted_and_not_shown(orders: pl.DataFrame, shop: Contract) -> None:
    found = only(find_violations(put(orders, "buyer", {7: MISSING}), shop))
    assert found.rows == 1
    assert found.examples == ((7, "(personal, not shown)"),)


def test_the_most_broken_rule_comes_first(orders: pl.DataFrame, shop: Contract) -> None:
    broken = put(put(orders, "items", {0: 0}), "amount", dict.fromkeys(range(5), -1.0))
    assert [found.column for found in find_violations(broken, shop)] == ["amount", "items"]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(
        st.one_of(st.none(), st.floats(allow_nan=False), st.sampled_from([0.0, 1000.0, 1000.0000001, -5e-324, 3.5e38])),
        min_size=1,
        max_size=20,
    )
)
def test_a_range_is_broken_by_exactly_the_values_outside(
    shop: Contract, orders: pl.DataFrame, values: list[Any]
) -> None:
    broken = orders.head(len(values)).with_columns(pl.Series("amount", values, dtype=pl.Float64))
    wrong = [row for row, value in enumerate(values) if value is not None and not 0 <= value <= 1000]
    found = find_violations(broken, shop)
    assert bool(found) == bool(wrong)
    if wrong:
        assert only(found).rows == len(wrong)
        assert [row for row, _ in only(found).examples] == wrong[: validate.MAX_EXAMPLES]


def test_random_changes_in_any_project_column_are_found(contract: Contract, table: pl.DataFrame) -> None:
    impossible: dict[str, Any] = {"float": 1e300, "integer": 2**60, "string": MISSING}
    for column in contract.columns:
        if column.type in impossible and column.role == "feature":
            row = 7 * len(column.name) % 100
            changed = put(table.head(100), column.name, {row: impossible[column.type]})
            assert {found.column for found in find_violations(changed, contract)} == {column.name}
            assert any(found.examples[0][0] == row for found in find_violations(changed, contract))


# The stages as the pipeline runs them, on a project of three files.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(SHOP))
    (tmp_path / "decisions.yaml").write_text(yaml.safe_dump({"decisions": [{"what": "split: by time", "why": "so"}]}))
    params: dict[str, Any] = {
        "seed": 1,
        "data": {"raw": "raw.csv", "until": None},
        "split": {"validation_days": 10, "test_days": 10},
        "train": {"estimator": "logistic_regression"},
        "evaluate": {},
        "gates": {
            "min_score": 0.5,
            "min_skill_score": 0.0,
            "min_gain_over_linear": 0.0,
            "max_drop_from_champion": 0.0,
            "parity_tolerance": 1.0,
        },
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


@pytest.fixture
def run(project: Path, capsys: pytest.CaptureFixture[str]) -> "Run":
    """Exit status of a stage, and its lines on the terminal."""

    def run(main: Callable[[Project], None]) -> tuple[Any, list[str]]:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: main(PROJECT))
        return ended.value.code, capsys.readouterr().err.splitlines()

    return run


Run = Callable[[Callable[[Project], None]], tuple[Any, list[str]]]


def test_a_broken_row_stops_the_pipeline_and_leaves_a_report(project: Path, orders: pl.DataFrame, run: Run) -> None:
    broken = put(put(orders, "items", {3: 0, 4: 99}), "kind", {2: "used"})
    broken.write_csv(project / "raw.csv")
    assert run(ingest.main) == (0, [])
    # As DVC starts it: a process of its own.
    command = [sys.executable, "-m", PACKAGE, "stage", "validate"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[:2] == [
        "  ✗ items: 2 rows: must be between 1 and 50; first: 0 (row 3), 99 (row 4)",
        "  ✗ kind: 1 row: must be one of 'new' or 'old'; first: 'used' (row 2)",
    ]
    assert lines[2].startswith(
        "error: data/table.parquet breaks contract.yaml in 2 ways (items: must be between 1 and 50)"
    )
    assert len(lines) == 3
    report = json.loads((project / paths.REPORTS / "validation.json").read_text())
    assert (report["ok"], report["rows"]) == (False, 100)
    assert report["violations"][0] == {
        "column": "items",
        "rule": "must be between 1 and 50",
        "rows": 2,
        "examples": [[3, "0"], [4, "99"]],
    }
    assert not (project / paths.REPORTS / "data_card.md").exists()


def test_a_table_changed_between_two_stages_stops_the_pipeline(project: Path, orders: pl.DataFrame, run: Run) -> None:
    orders.write_csv(project / "raw.csv")
    assert run(ingest.main) == (0, [])
    tables.write(orders.head(99), project / paths.TABLE)
    status, lines = run(validate.main)
    assert (status, len(lines)) == (1, 1)
    assert "data/table.parquet is not the file that its stage wrote" in lines[0]
    assert not (project / paths.REPORTS / "validation.json").exists()


def test_a_stage_before_its_predecessor_says_what_is_not_there(run: Run) -> None:
    status, lines = run(validate.main)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("error: reports/ingest.json: No such file or directory")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "error: raw.csv does not exist"),
        (b"", "error: raw.csv is empty (0 bytes)"),
        (b"order,placed,region\n1,2,3,4\n", "error: raw.csv, line 2: 4 cells where the header has 3"),
    ],
)
def test_a_raw_table_that_cannot_be_read_ends_in_one_line(
    project: Path, content: bytes | None, message: str, run: Run
) -> None:
    if content is not None:
        (project / "raw.csv").write_bytes(content)
    status, lines = run(ingest.main)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith(message)
    assert not (project / paths.TABLE).exists()


def test_valid_table_passes_the_stages_and_gets_its_card(project: Path, orders: pl.DataFrame, run: Run) -> None:
    orders.write_csv(project / "raw.csv")
    for main in (ingest.main, validate.main, split.main):
        assert run(main) == (0, [])
    assert json.loads((project / paths.REPORTS / "validation.json").read_text())["violations"] == []
    assert "100 rows × 11 columns" in (project / paths.REPORTS / "data_card.md").read_text()
    report = json.loads((project / paths.REPORTS / "split.json").read_text())
    assert {name: part["rows"] for name, part in report.items()} == {"train": 80, "validation": 10, "test": 10}
