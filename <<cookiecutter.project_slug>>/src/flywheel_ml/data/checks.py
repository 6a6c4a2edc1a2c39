"""The contract's rules as Polars expressions over tables in contract types."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl

from flywheel_ml.core.contract import Column
from flywheel_ml.core.parsing.rules import IS_BROKEN, REQUIRED, UNIQUE, Kind, build_rules

_EXPRESSIONS: dict[Kind, Callable[[pl.Expr, Any], pl.Expr]] = {
    "range": IS_BROKEN["range"],
    "categories": lambda value, limit: ~value.is_in(list(limit)),
    "reserved": IS_BROKEN["reserved"],
    "length": lambda value, limit: value.str.len_chars() > limit,
    "null_character": lambda value, limit: value.str.contains(limit, literal=True),
}


class ColumnCheck(NamedTuple):
    """A rule of one column: an expression for the rows that break it, bool [n_rows], and the tolerated share."""

    column: Column
    message: str
    broken: pl.Expr
    tolerance: float = 0.0


def build_checks(columns: Sequence[Column]) -> Iterator[ColumnCheck]:
    """Build all rules of a table's columns, including presence and uniqueness."""
    for column in columns:
        value = pl.col(column.name)
        if not column.nullable:
            yield ColumnCheck(column, REQUIRED, value.is_null())
        if column.role == "id":
            yield ColumnCheck(column, UNIQUE, value.is_duplicated() & value.is_not_null())
        for rule in build_rules(column):
            broken = _EXPRESSIONS[rule.kind](value, rule.limit).fill_null(value=False)
            yield ColumnCheck(column, rule.message, broken, rule.tolerance)
