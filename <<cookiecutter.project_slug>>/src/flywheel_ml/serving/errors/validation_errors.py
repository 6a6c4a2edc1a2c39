"""Builds problem documents from validation errors: field, value and rule, of bounded size."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from flywheel_ml.serving.errors.problems import Problem, shorten
from flywheel_ml.utils.config_model import suggest

MAX_LISTED_ERRORS = 20
MAX_NAME_CHARS = 100
MAX_VALUE_CHARS = 80

LABEL_TAGS = ("label of a prediction", "label of an entity", "value of a metric")
"""Tags of the kinds of labels; pydantic adds them to the location of an error."""

ErrorDetail = Mapping[str, Any]

_RULES: dict[str, Callable[[ErrorDetail], str]] = {
    "missing": lambda _: "is required",
    "string_type": lambda _: "must be a string",
    "string_too_short": lambda facts: f"must have at least {facts['min_length']} character",
    "string_too_long": lambda facts: f"must have at most {facts['max_length']} characters",
    "string_pattern_mismatch": lambda facts: f"must match {facts['pattern']}",
    "float_type": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "greater_than_equal": lambda facts: f"must be at least {facts['ge']:g}",
    "less_than_equal": lambda facts: f"must be at most {facts['le']:g}",
    "dict_type": lambda _: "must be an object",
    "list_type": lambda _: "must be an array",
    "too_short": lambda facts: f"must have at least {facts['min_length']} item",
    "too_long": lambda facts: f"must have at most {facts['max_length']} item{'s' if facts['max_length'] != 1 else ''}",
    "value_error": lambda facts: str(facts["error"]),
}
"""Rules of a request's structure; the rules of values come from the contract."""

_UNKNOWN = "unknown member of the request"
_KINDS = {"json": "JSON", "csv": "CSV in UTF-8", "arrow": "Arrow IPC stream"}


def build_problem(error: ValidationError, members: Sequence[str]) -> Problem:
    """Return 400 if the body is not JSON, otherwise 422 with the first errors.

    Args:
        error: raised by pydantic.
        members: allowed members of the objects in the request other than rows.
    """
    details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        return build_malformed_problem("json", details[0]["ctx"]["error"])
    return build_invalid_input_problem(
        len(details), [_describe_error(one, members) for one in details[:MAX_LISTED_ERRORS]]
    )


def build_malformed_problem(kind: str, reason: object) -> Problem:
    """Return 400 for a body that does not match its content type."""
    return Problem(400, f"malformed-{kind}", f"the body is not valid {_KINDS[kind]}: {reason}")


def build_invalid_input_problem(count: int, listed: Sequence[ErrorDetail], is_complete: bool = True) -> Problem:
    """Return 422 for `count` errors (at least that many if not `is_complete`); `listed` are the first of them."""
    some = "the first is" if len(listed) == 1 else f"the first {len(listed)} are"
    note = f"; {some} listed" if count > len(listed) else ""
    noun = "value does" if count == 1 else "values do"
    counted = f"{count}" if is_complete else f"at least {count}"
    return Problem(422, "invalid-input", f"{counted} {noun} not fit the model's contract{note}", errors=listed)


def build_error_detail(field: str | None, rule: str, instance: int | None = None, **found: Any) -> ErrorDetail:
    """Return one entry of `errors`; pass the rejected value, if there is one, as `value`."""
    shown = {name: _shorten_value(value) for name, value in found.items()}
    return {"instance": instance, "field": field and shorten(field, MAX_NAME_CHARS), **shown, "rule": shorten(rule)}


def _describe_error(details: Any, members: Sequence[str]) -> ErrorDetail:
    # `loc` is ("instances", 3, "label"), or shorter if the structure of the request is wrong.
    kind, place = details["type"], [part for part in details["loc"] if part not in LABEL_TAGS]
    index = place[1] if len(place) > 1 else None
    name = str(place[2] if len(place) > 2 else place[0]) if len(place) != 2 and place else None
    if kind == "extra_forbidden":
        rule = f"unknown field; {suggest(name or '', list(members))}" if index is not None else _UNKNOWN
    elif details["input"] is None and kind != "missing":
        rule = "must not be null"
    else:
        rule = _RULES[kind](details.get("ctx", {})) if kind in _RULES else details["msg"]
    return build_error_detail(name, rule, index, **({} if kind == "missing" else {"value": details["input"]}))


def _shorten_value(value: Any) -> Any:
    """Return a value that is short and valid in JSON."""
    if isinstance(value, str):
        return shorten(value, MAX_VALUE_CHARS)
    if isinstance(value, list | dict):
        return f"an {'array' if isinstance(value, list) else 'object'} of {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return shorten(str(value), MAX_VALUE_CHARS)
    return value
