"""Numerical stability: extreme inputs must give finite predictions that stay within their range."""

import inspect
from collections.abc import Iterator

import numpy as np

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Columns
from flywheel_ml.core.features import to_parameter_name
from flywheel_ml.core.params import GateParams
from flywheel_ml.model.evaluation.candidate import Candidate, MissingMeasure

ROWS = 20
PROBABILITY_TOLERANCE = 1e-4
"""Forests add up probabilities in float32, which gives 1.0000001 or -1e-8."""


def find_unstable(opened: Bundle, columns: Columns) -> tuple[str, ...]:
    """Find what goes wrong with extreme inputs; empty if nothing does.

    Each input column in turn takes the ends of its range, the limits of float32, infinities and missing values; then
    all of them at once. Outputs must be finite, probabilities between 0 and 1 that add up to 1, and float64 inputs must
    give what the same inputs in float32 give.

    Args:
        opened: the bundle.
        columns: its input columns; the first rows are varied.
    """
    few = {name: values[:ROWS] for name, values in columns.items()}
    found = list(_check(opened, few, "ordinary rows"))
    extremes: dict[str, dict[str, np.ndarray]] = {"lowest": {}, "highest": {}, "missing": {}}
    for column in opened.contract.inputs:
        for kind, value in _list_extremes(column):
            changed = np.full_like(few[column.name], value)
            found += _check(opened, {**few, column.name: changed}, f"'{column.name}' {kind}")
            if kind in extremes:
                extremes[kind][column.name] = changed
    for kind, changes in extremes.items():
        found += _check(opened, {**few, **changes}, f"all columns {kind}")
    found += _compare_precision(opened, few)
    return tuple(found)


def check_stability(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Extreme inputs give finite predictions within their range."""
    del params
    if candidate.unstable is None:
        raise MissingMeasure("extreme inputs were not tried")
    if candidate.unstable:
        more = f" and {len(candidate.unstable) - 1} more" if len(candidate.unstable) > 1 else ""
        return False, f"{candidate.unstable[0]}{more}"
    return True, "extreme, infinite and missing inputs give finite predictions within their range"


def _list_extremes(column: Column) -> Iterator[tuple[str, object]]:
    if column.type == "string":
        yield "missing", None
        yield "unknown", "\x01never seen"
    elif column.type == "datetime":
        yield "lowest", np.datetime64("1900-01-01", "us")
        yield "highest", np.datetime64("2200-12-31", "us")
        yield "missing", np.datetime64("NaT")
    else:
        low, high = (0.0, 1.0) if column.type == "boolean" else column.limits
        yield "lowest", low
        yield "highest", high
        yield "missing", np.nan
        yield "infinite", np.inf


def _check(opened: Bundle, columns: Columns, what: str) -> Iterator[str]:
    output = opened.run(opened.encode(columns)).astype(np.float64)
    if not np.isfinite(output).all():
        yield f"{what}: NaN or infinity as prediction"
    elif opened.manifest.classes and ((output < -PROBABILITY_TOLERANCE) | (output > 1 + PROBABILITY_TOLERANCE)).any():
        yield f"{what}: a probability outside 0 to 1"
    elif opened.manifest.classes and np.abs(output.sum(axis=1) - 1).max() > PROBABILITY_TOLERANCE:
        yield f"{what}: probabilities that do not add up to 1"


def _compare_precision(opened: Bundle, columns: Columns) -> Iterator[str]:
    """Round the numbers to float32, except those of which a derived feature may need more digits."""
    needed = {parameter for function in opened.features for parameter in inspect.signature(function).parameters}
    rounded = {
        column.name: columns[column.name].astype(np.float32).astype(np.float64)
        for column in opened.contract.inputs
        if column.is_numeric and to_parameter_name(column.name) not in needed
    }
    whole, single = (opened.run(opened.encode(one)) for one in (columns, {**columns, **rounded}))
    if not np.array_equal(whole, single):
        yield "float64 inputs: other predictions than the same inputs in float32"
