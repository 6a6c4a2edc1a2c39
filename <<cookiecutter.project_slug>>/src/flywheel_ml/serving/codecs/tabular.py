"""Helpers for codecs whose requests are tables with named columns."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.schema.request_schema import Schema


def build_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Convert columns of equal length to rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_row_limit(rows: int, field: str, schema: Schema) -> None:
    """Reject more rows than a request may have, before they are converted.

    Raises:
        Problem: 422.
    """
    if rows > schema.max_instances:
        raise build_field_problem(field, f"must have at most {schema.max_instances} rows")


def reject_duplicate_columns(names: Sequence[str]) -> None:
    """Reject duplicate column names.

    Raises:
        Problem: 422 that names the column.
    """
    if len(set(names)) < len(names):
        ((name, _),) = Counter(names).most_common(1)
        raise build_field_problem(name, "is a duplicate column; send it once")


def build_field_problem(field: str | None, rule: str, instance: int | None = None, **found: Any) -> Problem:
    """Return 422 for one error; the arguments are those of `validation_errors.build_error_detail`."""
    return validation_errors.build_invalid_input_problem(
        1, [validation_errors.build_error_detail(field, rule, instance, **found)]
    )
