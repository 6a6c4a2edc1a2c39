"""Parses one value of a column, from JSON or a cell."""

import math
import re
from datetime import date, datetime
from typing import Any

from flywheel_ml.core.contract import INTEGER_LIMIT, Column
from flywheel_ml.core.parsing.grammar import (
    Grammar,
    build_grammar,
    clean_text,
    compile_regex,
    to_plain_characters,
)
from flywheel_ml.utils import timestamps

TYPE_MESSAGES = {
    "float": "must be a number",
    "integer": "must be an integer",
    "boolean": "must be true or false",
    "string": "must be a string",
    "datetime": timestamps.NOT_A_TIMESTAMP,
}
"""Error message for a value of the wrong type."""
_INT64 = 2**63
_INT64_DIGITS = 19
_DIGITS = re.compile("[0-9]+")


def parse_value(value: Any, column: Column) -> Any:
    """Parse a value: returns float, int, str, bool or a datetime without a time zone; None if it is missing.

    Raises:
        ValueError: it is not a value of the column's type; the message says what it must be.
    """
    rules = build_grammar(column)
    if isinstance(value, str):
        return read_text(value, rules)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return rules.missing_category
    found = _READERS[rules.type](value, rules)
    return None if found in rules.sentinels else found


def read_text(text: str, rules: Grammar) -> Any:
    """Parse a text as `parse_value` does."""
    text = clean_text(text)
    if rules.is_marker(text):
        return rules.missing_category
    if rules.type == "string":
        return _pad_code(text, rules)
    text = clean_text(to_plain_characters(text))
    if rules.is_marker(text):
        return None
    found = _TEXT_READERS[rules.type](text, rules)
    return None if found in rules.sentinels else found


def _normalize_number(text: str, rules: Grammar) -> str:
    """Rewrite a number in Python's notation."""
    found = compile_regex(rules.number).search(text)
    if found is None:
        raise ValueError(TYPE_MESSAGES[rules.type])
    signs = [sign for sign in found.group("before", "inner", "after") if sign]
    bracketed = bool(found["open"])
    if len(signs) + bracketed > 1 or bracketed != bool(found["close"]):
        raise ValueError(TYPE_MESSAGES[rules.type])
    digits = found["digits"].replace(rules.thousands, "") if rules.thousands else found["digits"]
    return ("-" if bracketed or "-" in signs else "") + digits.replace(rules.decimal, ".")


def _parse_float(text: str, rules: Grammar) -> float | None:
    number = float(_normalize_number(text, rules))
    return number if math.isfinite(number) else None


def _parse_integer(text: str, rules: Grammar) -> int:
    number = _normalize_number(text, rules)
    if number.lstrip("-").isdecimal():
        digits = number.lstrip("-0") or "0"
        if len(digits) > _INT64_DIGITS:  # Python rejects numbers with thousands of digits.
            raise ValueError(TYPE_MESSAGES["integer"])
        return _check_int64(int(f"-{digits}" if number.startswith("-") else digits))
    # pandas writes an integer column that has gaps as 3.0.
    return _to_whole_number(float(number))


def _parse_boolean(text: str, rules: Grammar) -> bool:
    found = rules.booleans.get(text.lower())
    if found is None:
        raise ValueError(TYPE_MESSAGES["boolean"])
    return found


def _parse_datetime(text: str, rules: Grammar) -> datetime:
    stamp = timestamps.parse(text, rules.formats)
    if stamp is None:
        raise ValueError(_timestamp_message(rules))
    return timestamps.to_zone(stamp, rules.time_zone)


def _timestamp_message(rules: Grammar) -> str:
    others = [form.name for form in rules.formats if form.name != timestamps.ISO]
    return timestamps.NOT_A_TIMESTAMP + (f", or be written {' or '.join(others)}" if others else "")


def _check_float(value: Any, _: Grammar) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(TYPE_MESSAGES["float"])
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(TYPE_MESSAGES["float"]) from None
    if number != value:
        raise ValueError("must be a number that float64 holds exactly")
    return number


def _check_integer(value: Any, _: Grammar) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(TYPE_MESSAGES["integer"])
    return _check_int64(value) if isinstance(value, int) else _to_whole_number(value)


def _check_boolean(value: Any, _: Grammar) -> bool:
    if not isinstance(value, int | float) or value not in (0, 1):
        raise ValueError(TYPE_MESSAGES["boolean"])
    return bool(value)


def _check_string(value: Any, rules: Grammar) -> str:
    # Some systems have ids beyond every number type of a model.
    if isinstance(value, bool) or not isinstance(value, int | float if rules.code_width else int):
        raise ValueError(TYPE_MESSAGES["string"])
    return _pad_code(str(_to_whole_number(value) if isinstance(value, float) else value), rules)


def _pad_code(text: str, rules: Grammar) -> str:
    return text.zfill(rules.code_width) if len(text) < rules.code_width and _DIGITS.fullmatch(text) else text


def _check_datetime(value: Any, rules: Grammar) -> datetime:
    if isinstance(value, datetime):
        return timestamps.aware_to_zone(value, rules.time_zone)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if rules.counts and isinstance(value, int | float) and not isinstance(value, bool):
        whole = int(value) if value == int(value) else value
        return _parse_datetime(str(whole), rules)
    raise ValueError(_timestamp_message(rules))


def _to_whole_number(number: float) -> int:
    if not number.is_integer() or abs(number) > INTEGER_LIMIT:
        raise ValueError(TYPE_MESSAGES["integer"])
    return int(number)


def _check_int64(number: int) -> int:
    if not -_INT64 <= number < _INT64:
        raise ValueError(TYPE_MESSAGES["integer"])
    return number


_READERS = {
    "float": _check_float,
    "integer": _check_integer,
    "boolean": _check_boolean,
    "string": _check_string,
    "datetime": _check_datetime,
}
_TEXT_READERS = {
    "float": _parse_float,
    "integer": _parse_integer,
    "boolean": _parse_boolean,
    "datetime": _parse_datetime,
}
