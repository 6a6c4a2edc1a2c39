"""Stage 2: validates every row against the contract."""

import sys
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.parsing.rules import add_tolerance
from flywheel_ml.core.project import Project
from flywheel_ml.data import data_card, privacy, tables
from flywheel_ml.data.checks import ColumnCheck, build_checks
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ContractViolation
from flywheel_ml.utils.files import read_json, write_json

MAX_EXAMPLES = 5
MAX_EXAMPLE_LENGTH = 80


class TableViolation(BaseModel):
    """A broken rule; `examples` are the first (row number, value) pairs, rows counted from 0."""

    model_config = ConfigDict(frozen=True)

    column: str
    rule: str
    rows: int
    examples: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        counted = f"{self.rows:,} row{'s' if self.rows != 1 else ''}: " if self.rows else ""
        shown = ", ".join(f"{value} (row {row})" for row, value in self.examples)
        return f"{self.column}: {counted}{self.rule}" + (f"; first: {shown}" if shown else "")


def find_violations(table: pl.DataFrame, contract: Contract) -> list[TableViolation]:
    """Find all violations in a table read by `tables.read`, most rows first; an empty list means it is valid."""
    found = _find_column_violations(table, contract)
    # For a missing or mistyped column, further rules would only repeat that error.
    checkable = [column for column in contract.columns if column.name not in {violation.column for violation in found}]
    checks = list(build_checks(checkable))
    counts = table.select(check.broken.sum().alias(str(at)) for at, check in enumerate(checks)).rows() or [()]
    for check, count in zip(checks, counts[0], strict=True):
        if count > check.tolerance * table[check.column.name].count():
            found.append(_build_rule_violation(table, check))
    return sorted(found, key=lambda violation: -violation.rows)


def main(project: Project) -> None:
    """Validate the ingested table and write the report; stop the pipeline on any violation."""
    contract = Contract.load(paths.CONTRACT)
    ingested = read_json(paths.REPORTS / "ingest.json")
    table = tables.read_verified(paths.TABLE, ingested["sha256"])
    found = find_violations(table, contract)
    report: dict[str, Any] = {
        "ok": not found,
        "rows": table.height,
        "sha256": ingested["sha256"],
        "contract_sha256": contract.fingerprint(),
        "violations": [violation.model_dump(mode="json") for violation in found],
    }
    write_json(paths.REPORTS / "validation.json", report)
    scanned = privacy.report_table(table, contract, ingested["sha256"])
    write_json(paths.PRIVACY, scanned)
    for name in scanned["undeclared"]:
        kinds = ", ".join(scanned["columns"][name])
        print(f"  ! {name}: {kinds} found; declare the column `personal: true` in contract.yaml", file=sys.stderr)
    if found:
        for violation in found:
            print(f"  ✗ {violation}", file=sys.stderr)
        raise ContractViolation(
            f"{paths.TABLE} breaks contract.yaml in {len(found)} way{'s' if len(found) != 1 else ''} "
            f"({found[0].column}: {found[0].rule}); fix the data or the contract; "
            f"the full list is in {paths.REPORTS / 'validation.json'}, rows counted from 0"
        )
    data_card.write_card(table, contract, ingested, project.folder / "cards")


def _find_column_violations(table: pl.DataFrame, contract: Contract) -> list[TableViolation]:
    names = [column.name for column in contract.columns]
    found = []
    for column in contract.columns:
        if column.name not in table.columns:
            extra = [name for name in table.columns if name not in names]
            hint = f"; the table has others ({suggest(column.name, extra)})" if extra else ""
            found.append(TableViolation(column=column.name, rule=f"the column is missing{hint}", rows=0))
        elif table.schema[column.name] != tables.DTYPES[column.type]:
            found.append(_build_type_violation(table[column.name], column))
    for name in table.columns:
        if name not in names:
            rule = f"the column is not in the contract ({suggest(name, names)}); drop it, or add it with role ignored"
            found.append(TableViolation(column=name, rule=rule, rows=0))
    return found


def _build_type_violation(series: pl.Series, column: Column) -> TableViolation:
    wrong = tables.find_misfits(series, column)
    found = "" if series.dtype == pl.String else f" (the file says {series.dtype})"
    return _build_violation(series, column, tables.describe_misfit(series.filter(wrong)[0], column) + found, wrong)


def _build_rule_violation(table: pl.DataFrame, check: ColumnCheck) -> TableViolation:
    wrong = table.select(check.broken).to_series()
    return _build_violation(
        table[check.column.name], check.column, add_tolerance(check.message, check.tolerance), wrong
    )


def _build_violation(series: pl.Series, column: Column, rule: str, wrong: pl.Series) -> TableViolation:
    rows = wrong.arg_true()[:MAX_EXAMPLES]
    examples = tuple((int(row), _format_value(series[int(row)], column)) for row in rows)
    return TableViolation(column=column.name, rule=rule, rows=int(wrong.sum()), examples=examples)


def _format_value(value: object, column: Column) -> str:
    if value is None:
        return "no value"
    if column.personal:
        return "(personal, not shown)"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_EXAMPLE_LENGTH else f"{text[:MAX_EXAMPLE_LENGTH]}…"
