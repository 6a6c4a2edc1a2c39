"""The data card: describes the table from its contract, its rows and decisions.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.data import tables
from flywheel_ml.data.card_templates import render_template
from flywheel_ml.utils import config_model
from flywheel_ml.utils.files import replacing

PATH = paths.REPORTS / "data_card.md"
CARD = Path(__file__).with_name("data_card.md.jinja")


class RecordedDecision(config_model.StrictModel):
    """A decision about a column, or about the table if `column` is empty, and its reason."""

    column: str = ""
    what: str
    why: str


class RecordedIssue(config_model.StrictModel):
    """A data issue: the evidence, the remedy, and whether adopt fixed it (`handled`) or it is open (`warned`)."""

    kind: str
    column: str = ""
    severity: Literal["warned", "handled"]
    evidence: str
    remedy: str


class Record(config_model.StrictModel):
    """Contents of decisions.yaml: facts about a table that its rows do not show."""

    renamed: ClassVar[Mapping[str, str]] = {"hazards": "issues"}

    decisions: tuple[RecordedDecision, ...] = ()
    issues: tuple[RecordedIssue, ...] = ()


def write_card(
    table: pl.DataFrame, contract: Contract, ingested: dict[str, int], templates: Path | None = None
) -> None:
    """Write reports/data_card.md, atomically; with the arguments of `render_card`.

    Raises:
        ConfigError: decisions.yaml is missing or malformed, or the project's template is.
    """
    record = config_model.load(paths.DECISIONS, Record)
    content = render_card(table, contract, ingested, record, templates)
    with replacing(PATH) as part:
        part.write_text(content, encoding="utf-8")


def render_card(
    table: pl.DataFrame,
    contract: Contract,
    ingested: dict[str, int],
    record: Record | None = None,
    templates: Path | None = None,
) -> str:
    """Render the card as Markdown: counts from the run, meanings from the contract, reasons from the record.

    Args:
        table: n_rows × contract columns; a sample, if `ingested` has more `rows`, and the card then says so.
        contract: the contract of the table.
        ingested: rows, and how many were left out, as the ingest stage counted them.
        record: decisions.yaml.
        templates: folder with a `data_card.md.jinja` of the project's; the library's own if there is none.

    Raises:
        ConfigError: the project's template is malformed.
    """
    target, rows, record = contract.target, ingested.get("rows", table.height), record or Record()
    facts = [
        f"- {rows:,} rows × {len(contract.columns)} columns{_describe_span(table, contract)}",
        *([f"- computed on a random sample of {table.height:,} rows"] if rows > table.height else []),
        f"- left out: {ingested['rows_after_until']:,} rows later than `data.until`, "
        f"{ingested['rows_without_label']:,} without a label",
        f"- target: `{target.name}`, {_describe_values(table[target.name], target)}. {target.description}",
        f"- personal data: {', '.join(f'`{c.name}`' for c in contract.columns if c.personal) or 'none declared'}",
    ]
    columns = [
        "| column | role | type | unit | allowed | found | missing | meaning |",
        "| --- | --- | --- | --- | --- | --- | ---: | --- |",
        *(_render_column(table[column.name], column) for column in contract.columns),
    ]
    return render_template(
        CARD,
        templates,
        name=contract.name,
        description=contract.description,
        facts="\n".join(facts),
        columns="\n".join(columns),
        decisions="\n".join(_render_decisions(record)),
        issues="\n".join(_render_issues(record)),
    )


def _render_decisions(record: Record) -> list[str]:
    if not record.decisions:
        return []
    rows = (
        f"| {f'`{_escape_cell(one.column)}`' if one.column else '–'} "
        f"| {_escape_cell(one.what)} | {_escape_cell(one.why)} |"
        for one in record.decisions
    )
    return ["| column | decided | why |", "| --- | --- | --- |", *rows]


def _render_issues(record: Record) -> list[str]:
    if not record.issues:
        return []
    rows = (
        f"| {_escape_cell(one.kind)} | {f'`{_escape_cell(one.column)}`' if one.column else '–'} | {one.severity} "
        f"| {_escape_cell(one.evidence)} | {_escape_cell(one.remedy)} |"
        for one in record.issues
    )
    return ["| issue | column | | seen | to do |", "| --- | --- | --- | --- | --- |", *rows]


def _render_column(series: pl.Series, column: Column) -> str:
    share = series.null_count() / len(series)
    missing = "–" if not share else f"{share:.1%}" if share >= 0.001 else "< 0.1%"
    cells = (
        f"`{column.name}`",
        column.role,
        column.type,
        column.unit or "–",
        _describe_allowed(column),
        _describe_values(series, column),
        missing,
    )
    return f"| {' | '.join(_escape_cell(cell) for cell in (*cells, column.description))} |"


def _describe_allowed(column: Column) -> str:
    if column.range is not None:
        return f"{column.range[0]:g} to {column.range[1]:g}"
    if column.categories is not None:
        open_end = f", others up to {column.max_unknown_share:.1%}" if column.max_unknown_share else ""
        return f"{len(column.categories)} categories{open_end}"
    return "any"


def _describe_values(series: pl.Series, column: Column) -> str:
    if column.role == "target" and column.categories is not None:
        shares = ((label, int((series == label).sum()) / max(1, len(series))) for label in column.categories)
        return ", ".join(f"{share:.1%} {label}" for label, share in shares)
    if column.type in ("float", "integer"):
        found: list[Any] = [series.min(), series.median(), series.max()]
        return "–" if found[0] is None else " … ".join(format(value, "g") for value in found)
    if column.type == "datetime":
        return tables.describe_span(series)
    if column.type == "boolean":
        return _describe_balance(series)
    return f"{series.n_unique():,} distinct"


def _describe_balance(series: pl.Series) -> str:
    # Counted, not averaged: Polars' mean changes low bits from run to run.
    present = len(series) - series.null_count()
    return f"{int(series.sum()) / present:.1%} true" if present else "–"


def _describe_span(table: pl.DataFrame, contract: Contract) -> str:
    if contract.time is None:
        return ""
    return f", {tables.describe_span(table[contract.time.name])}"


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "–"
