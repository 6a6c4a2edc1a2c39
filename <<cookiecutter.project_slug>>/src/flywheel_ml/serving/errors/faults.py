"""From a validation error to the field, the value and the rule it broke, in bounded space."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from flywheel_ml.serving.errors.problems import Problem, shortened
from flywheel_ml.utils.config_model import suggest

SHOWN = 20
MAX_NAME = 100
MAX_VALUE = 80

Details = Mapping[str, Any]

_RULES: dict[str, Callable[[Details], str]] = {
    "missing": lambda _: "is required",
    "string_type": lambda _: "must be a string",
    "string_too_short": lambda facts: f"must have at least {facts['min_length']} character",
    "string_too_long": lambda facts: f"must have at most {facts['max_length']} characters",
    "dict_type": lambda _: "must be an object",
    "list_type": lambda _: "must be an array",
    "too_short": lambda facts: f"must have at least {facts['min_length']} item",
    "too_long": lambda facts: f"must have at most {facts['max_length']} item{'s' if facts['max_length'] != 1 else ''}",
    "value_error": lambda facts: str(facts["error"]),
}
"""Rules of a request's frame; those of values are the contract's."""

_UNKNOWN = "unknown member of the request"
_KINDS = {"json": "JSON", "csv": "CSV in UTF-8", "arrow": "Arrow IPC stream"}


def problem(error: ValidationError, members: Sequence[str]) -> Problem:
    """400 for what is no JSON, otherwise 422 with the first faults.

    Args:
        members: what the objects of the request, other than its rows, may have.
    """
    details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        return malformed("json", details[0]["ctx"]["error"])
    return refused(len(details), [_fault(one, members) for one in details[:SHOWN]])


def malformed(kind: str, reason: object) -> Problem:
    """400: the body is not what its content type says."""
    return Problem(400, f"malformed-{kind}", f"the body is not valid {_KINDS[kind]}: {reason}")


def refused(count: int, listed: Sequence[Details], is_complete: bool = True) -> Problem:
    """422 for so many faults, or at least so many, the first ones of which are listed as `fault` makes them."""
    some = "the first is" if len(listed) == 1 else f"the first {len(listed)} are"
    told = f"; {some} listed" if count > len(listed) else ""
    noun = "value does" if count == 1 else "values do"
    counted = f"{count}" if is_complete else f"at least {count}"
    return Problem(422, "invalid-input", f"{counted} {noun} not fit the model's contract{told}", errors=listed)


def fault(field: str | None, rule: str, instance: int | None = None, **found: Any) -> Details:
    """One fault; `value`, where there is one, is what was found."""
    told = {name: _shown(value) for name, value in found.items()}
    return {"instance": instance, "field": field and shortened(field, MAX_NAME), **told, "rule": shortened(rule)}


def _fault(details: Any, members: Sequence[str]) -> Details:
    # The place is ("instances", 3, "label"), or shorter where the request's frame itself is wrong.
    kind, place = details["type"], details["loc"]
    index = place[1] if len(place) > 1 else None
    name = str(place[2] if len(place) > 2 else place[0]) if len(place) != 2 and place else None
    if kind == "extra_forbidden":
        rule = f"unknown field; {suggest(name or '', list(members))}" if index is not None else _UNKNOWN
    elif details["input"] is None and kind != "missing":
        rule = "must not be null"
    else:
        rule = _RULES[kind](details.get("ctx", {})) if kind in _RULES else details["msg"]
    return fault(name, rule, index, **({} if kind == "missing" else {"value": details["input"]}))


def _shown(value: Any) -> Any:
    """A value short enough to repeat and fit for JSON."""
    if isinstance(value, str):
        return shortened(value, MAX_VALUE)
    if isinstance(value, list | dict):
        return f"an {'array' if isinstance(value, list) else 'object'} of {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return shortened(str(value), MAX_VALUE)
    return value
