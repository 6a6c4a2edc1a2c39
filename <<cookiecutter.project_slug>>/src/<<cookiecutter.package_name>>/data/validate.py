"""Stage 2: every row against the contract. The only place that knows pandera."""

import sys
from typing import Any

import pandera.polars as pa
import polars as pl
from pydantic import BaseModel, ConfigDict

from .. import stage
from ..contract import Column, Contract
from ..errors import ContractViolation
from ..files import read_json, write_json
from ..strict import nearest
from . import card, tables

EXAMPLES = 5


class Violation(BaseModel):
    """One rule that rows broke; `examples` are the first (row number, value) pairs."""

    model_config = ConfigDict(frozen=True)

    column: str
    rule: str
    rows: int
    examples: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        counted = f"{self.rows:,} row{'s' if self.rows != 1 else ''}: " if self.rows else ""
        shown = ", ".join(f"{value!r} (row {row:,})" for row, value in self.examples)
        return f"{self.column}: {counted}{self.rule}" + (f"; first: {shown}" if shown else "")


def schema(contract: Contract) -> pa.DataFrameSchema:
    """The contract as a pandera schema for Polars frames."""
    return pa.DataFrameSchema(
        {
            column.name: pa.Column(
                tables.DTYPES[column.type],
                checks=_checks(column),
                nullable=column.nullable,
                unique=column.role == "id",
                required=True,
            )
            for column in contract.columns
        },
        strict=True,
    )


def check(table: pl.DataFrame, contract: Contract) -> list[Violation]:
    """All violations of a table, most rows first; none means that the table keeps the contract."""
    shape = _shape(table, contract)
    if shape:
        # Row rules on columns that are absent or of another type would only repeat the same fault.
        return shape
    try:
        schema(contract).validate(table, lazy=True)
    except pa.errors.SchemaErrors as errors:
        return _violations(table, contract, errors)
    return []


def main() -> None:
    """Read the ingested table, judge it, write what was found; stop the pipeline if anything was."""
    contract = Contract.load(stage.CONTRACT)
    ingested = read_json(stage.REPORTS / "ingest.json")
    table = tables.read_verified(stage.TABLE, ingested["sha256"])
    found = check(table, contract)
    report: dict[str, Any] = {
        "ok": not found,
        "rows": table.height,
        "sha256": ingested["sha256"],
        "contract_sha256": contract.fingerprint(),
        "violations": [violation.model_dump(mode="json") for violation in found],
    }
    write_json(stage.REPORTS / "validation.json", report)
    if found:
        for violation in found:
            print(f"  ✗ {violation}", file=sys.stderr)
        raise ContractViolation(
            f"the table breaks contract.yaml in {len(found)} way{'s' if len(found) != 1 else ''} "
            f"({found[0].column}: {found[0].rule}); mend the data or the contract; "
            f"all of it is in {stage.REPORTS / 'validation.json'}"
        )
    card.write(table, contract, ingested)


def _shape(table: pl.DataFrame, contract: Contract) -> list[Violation]:
    names = [column.name for column in contract.columns]
    found = []
    for column in contract.columns:
        if column.name not in table.columns:
            extra = [name for name in table.columns if name not in names]
            hint = f"; {nearest(column.name, extra)}" if extra else ""
            found.append(Violation(column=column.name, rule=f"the column is missing{hint}", rows=0))
        elif table.schema[column.name] != tables.DTYPES[column.type]:
            found.append(_mistyped(table[column.name], column))
    for name in table.columns:
        if name not in names:
            rule = f"the column is not in the contract; {nearest(name, names)}"
            found.append(Violation(column=name, rule=rule, rows=0))
    return found


def _mistyped(series: pl.Series, column: Column) -> Violation:
    rule = f"type {series.dtype} where the contract says {column.type}"
    if series.dtype != pl.String:
        return Violation(column=column.name, rule=rule, rows=0)
    fits = pl.Series([tables.conform_value(value, column) for value in series.unique()], dtype=pl.Boolean)
    bad = series.unique().filter(~fits)
    wrong = series.is_in(bad.implode()) & series.is_not_null()
    return Violation(
        column=column.name, rule=f"not of type {column.type}", rows=int(wrong.sum()), examples=_examples(series, wrong)
    )


def _checks(column: Column) -> list[pa.Check]:
    checks = []
    if column.range is not None:
        low, high = column.range
        checks.append(pa.Check.in_range(low, high, error=f"outside [{low:g}, {high:g}]{_unit(column)}"))
    if column.categories is not None:
        checks.append(pa.Check(_known(column), error=_unknown_rule(column)))
    return checks


def _known(column: Column) -> Any:
    def known(data: pa.PolarsData) -> pl.LazyFrame:
        is_known = pl.col(data.key).is_in(list(column.categories or ()))
        tolerated = (~is_known).mean() <= column.unseen
        frame: pl.LazyFrame = data.lazyframe
        return frame.select(pl.when(tolerated).then(pl.lit(True)).otherwise(is_known))

    return known


def _unknown_rule(column: Column) -> str:
    beyond = f", beyond the {column.unseen:.1%} that the contract tolerates" if column.unseen else ""
    return f"no category of the contract{beyond}"


def _unit(column: Column) -> str:
    return f" {column.unit}" if column.unit else ""


def _violations(table: pl.DataFrame, contract: Contract, errors: pa.errors.SchemaErrors) -> list[Violation]:
    found = []
    for error in errors.schema_errors:
        column = contract[str(error.schema.name)]
        series = table[column.name]
        if error.reason_code == pa.errors.SchemaErrorReason.SERIES_CONTAINS_NULLS:
            wrong, rule = series.is_null(), "missing, and the column is not nullable"
        elif error.reason_code == pa.errors.SchemaErrorReason.SERIES_CONTAINS_DUPLICATES:
            wrong, rule = series.is_duplicated() & series.is_not_null(), "the id stands more than once"
        else:
            wrong, rule = _broken(series, column, error)
        found.append(Violation(column=column.name, rule=rule, rows=int(wrong.sum()), examples=_examples(series, wrong)))
    return sorted(found, key=lambda violation: -violation.rows)


def _broken(series: pl.Series, column: Column, error: Any) -> tuple[pl.Series, str]:
    if column.range is not None:
        low, high = column.range
        return ~series.is_between(low, high).fill_null(True), str(error.check.error)
    return (~series.is_in(list(column.categories or ()))) & series.is_not_null(), str(error.check.error)


def _examples(series: pl.Series, wrong: pl.Series) -> tuple[tuple[int, str], ...]:
    rows = wrong.arg_true()[:EXAMPLES]
    return tuple((int(row), str(series[int(row)])) for row in rows)


if __name__ == "__main__":
    stage.run(main)
