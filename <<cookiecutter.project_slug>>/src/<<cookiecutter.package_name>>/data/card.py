"""The data card: what the table is, written from the contract and the rows."""

from typing import Any

import polars as pl

from .. import stage
from ..contract import Column, Contract
from ..files import replacing
from . import tables

PATH = stage.REPORTS / "data_card.md"


def write(table: pl.DataFrame, contract: Contract, ingested: dict[str, int]) -> None:
    """Write reports/data_card.md, atomically."""
    with replacing(PATH) as part:
        part.write_text(text(table, contract, ingested), encoding="utf-8")


def text(table: pl.DataFrame, contract: Contract, ingested: dict[str, int]) -> str:
    """The card as Markdown: counts from the run, meanings from the contract."""
    target = contract.target
    lines = [
        f"# Data card: {contract.name}",
        "",
        contract.description,
        "",
        f"- {table.height:,} rows × {len(contract.columns)} columns{_span(table, contract)}",
        f"- left out: {ingested['rows_after_until']:,} rows later than `data.until`, "
        f"{ingested['rows_without_label']:,} without a label",
        f"- target: `{target.name}`, {_found(table[target.name], target)}. {target.description}",
        f"- personal data: {', '.join(f'`{c.name}`' for c in contract.columns if c.personal) or 'none declared'}",
        "",
        "| column | role | type | unit | allowed | found | missing | meaning |",
        "| --- | --- | --- | --- | --- | --- | ---: | --- |",
        *(_row(table[column.name], column) for column in contract.columns),
        "",
    ]
    return "\n".join(lines)


def _row(series: pl.Series, column: Column) -> str:
    share = series.null_count() / len(series)
    missing = "–" if not share else f"{share:.1%}" if share >= 0.001 else "< 0.1%"
    cells = (
        f"`{column.name}`",
        column.role,
        column.type,
        column.unit or "–",
        _allowed(column),
        _found(series, column),
        missing,
    )
    return f"| {' | '.join(_cell(cell) for cell in (*cells, column.description))} |"


def _allowed(column: Column) -> str:
    if column.range is not None:
        return f"{column.range[0]:g} to {column.range[1]:g}"
    if column.categories is not None:
        open_end = f", others up to {column.unseen:.1%}" if column.unseen else ""
        return f"{len(column.categories)} categories{open_end}"
    return "any"


def _found(series: pl.Series, column: Column) -> str:
    if column.role == "target" and column.categories is not None:
        shares = ((label, int((series == label).sum()) / max(1, len(series))) for label in column.categories)
        return ", ".join(f"{share:.1%} {label}" for label, share in shares)
    if column.type in ("float", "integer"):
        found: list[Any] = [series.min(), series.median(), series.max()]
        return "–" if found[0] is None else " … ".join(format(value, "g") for value in found)
    if column.type == "datetime":
        return tables.span(series)
    if column.type == "boolean":
        return _balance(series)
    return f"{series.n_unique():,} distinct"


def _balance(series: pl.Series) -> str:
    # Counted, not averaged: Polars' mean changes low bits from run to run.
    present = len(series) - series.null_count()
    return f"{int(series.sum()) / present:.1%} true" if present else "–"


def _span(table: pl.DataFrame, contract: Contract) -> str:
    if contract.time is None:
        return ""
    moments = table[contract.time.name]
    return f", {tables.span(moments)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "–"
