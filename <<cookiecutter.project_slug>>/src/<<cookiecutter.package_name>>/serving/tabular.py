"""Tables as other ecosystems' clients write them, made what the contract reads, where that loses nothing.

They know no null in a column of numbers and write NaN, and their integers with gaps are floats. Nothing else is made to
fit: the contract judges the rest.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..contract import Column, Contract
from . import faults
from .problems import Problem
from .schemas import Schema


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows from columns of one length."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def mended(rows: Sequence[Any], contract: Contract) -> list[Any]:
    """The same rows, their values as `fit` has them; what is no row of named values is left to the contract."""
    known = {column.name: column for column in contract.columns}
    return [
        {name: fit(value, known.get(name)) for name, value in row.items()} if isinstance(row, Mapping) else row
        for row in rows
    ]


def fit(value: Any, column: Column | None) -> Any:
    """None for NaN (and pandas' "NaT" of a moment), a whole number as an integer where the contract has those."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if column is not None and column.type == "integer" and value.is_integer():
            return int(value)
    elif value == "NaT" and column is not None and column.type == "datetime":
        return None
    return value


def not_too_many(rows: int, field: str, schema: Schema) -> None:
    """Refuse more rows than a request may have, before anything is made of them.

    Raises:
        Problem: 422.
    """
    if rows > schema.max_instances:
        raise refused(field, f"must have at most {schema.max_instances} rows")


def none_twice(names: Sequence[str]) -> None:
    """Refuse columns of one name.

    Raises:
        Problem: 422 that names the column.
    """
    if len(set(names)) < len(names):
        ((name, _),) = Counter(names).most_common(1)
        raise refused(name, "stands twice among the columns")


def refused(field: str | None, rule: str, instance: int | None = None, **found: Any) -> Problem:
    """422 for one fault, as `faults.fault` describes it."""
    return faults.refused(1, [faults.fault(field, rule, instance, **found)])
