"""Tables of columns by name, as other ecosystems' clients send them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_ml.serving.errors import faults
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.schema.request_schema import Schema


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows from columns of one length."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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
