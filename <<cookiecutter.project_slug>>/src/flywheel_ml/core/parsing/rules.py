"""Rules for the present values of a column, each defined once with one condition and one message.

The table check, batch scoring, requests, Arrow bodies and monitoring are compiled from these statements.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from flywheel_ml.core.contract import MISSING, Column

Kind = Literal["range", "categories", "reserved", "length", "null_character"]

REQUIRED = "must not be missing"
"""Message for a missing value in a column that is not nullable, and for an absent field."""
UNIQUE = "must be unique: the id appears more than once"
MAX_ID_LENGTH = 10_000
MAX_LISTED = 12
"""Categories that a message lists."""


class Rule(NamedTuple):
    """One condition on a value.

    Attributes:
        kind: the kind of condition.
        limit: the value of the condition: lowest and highest value, the categories, or as `IS_BROKEN` has it.
        message: the error message for a value that breaks it.
        tolerance: share of a table's values that may break it; above 0, a single value never breaks it.
    """

    kind: Kind
    limit: Any
    message: str
    tolerance: float = 0.0


IS_BROKEN: dict[Kind, Callable[[Any, Any], Any]] = {
    # Numbers, NumPy arrays and Polars expressions alike.
    "range": lambda value, limit: (value < limit[0]) | (value > limit[1]),
    "categories": lambda value, limit: value not in limit,
    "reserved": lambda value, limit: value == limit,
    "length": lambda value, limit: len(value) > limit,
    "null_character": lambda value, limit: limit in value,
}
"""Whether a present value breaks a rule of this kind with this limit."""


def build_rules(column: Column) -> tuple[Rule, ...]:
    """Build the rules of a column's values, besides type, presence and uniqueness."""
    found: list[Rule] = []
    if column.type in ("float", "integer"):
        found.append(_build_range_rule(column))
    if column.categories is not None:
        found.append(
            Rule("categories", column.categories, _list_categories(column.categories), column.max_unknown_share)
        )
    if column.type == "string" and (column.categories is None or column.max_unknown_share):
        found.append(Rule("reserved", MISSING, f"must not be '{MISSING}', which is reserved for missing values"))
    if column.type == "string" and column.role == "id":
        # An id is also stored as the entity: PostgreSQL takes no NUL character in a text.
        found.append(Rule("length", MAX_ID_LENGTH, f"must have at most {MAX_ID_LENGTH} characters"))
        found.append(Rule("null_character", "\x00", "must not contain a NUL character"))
    return tuple(found)


def build_value_rules(column: Column) -> tuple[Rule, ...]:
    """Build the rules that a single value can break: those without a tolerance."""
    return tuple(rule for rule in build_rules(column) if not rule.tolerance)


def add_tolerance(message: str, tolerance: float) -> str:
    """Add the tolerance to the message for a table that breaks a rule too often."""
    return f"{message}, beyond the {tolerance:.1%} that the contract tolerates" if tolerance else message


def _build_range_rule(column: Column) -> Rule:
    low, high = column.limits
    if column.type == "integer":
        low, high = math.ceil(low), math.floor(high)
    if column.role == "weight" and column.range is None:
        return Rule("range", (0, high), "must not be negative")
    unit = f" {column.unit}" if column.unit else ""
    beyond = "" if column.range else ", the limits of what the model can distinguish"
    return Rule("range", (low, high), f"must be between {format_bound(low)} and {format_bound(high)}{unit}{beyond}")


def _list_categories(categories: tuple[str | int, ...]) -> str:
    *others, last = (repr(category) for category in categories)
    if len(categories) > MAX_LISTED:
        return f"must be one of {', '.join(others[:MAX_LISTED])}, … ({len(categories)} in the contract)"
    return f"must be one of {', '.join(others)} or {last}" if others else f"must be {last}"


def format_bound(value: float) -> str:
    """Format a bound for messages."""
    return str(int(value)) if abs(value) <= 2**53 and value == int(value) else f"{value:.6g}"
