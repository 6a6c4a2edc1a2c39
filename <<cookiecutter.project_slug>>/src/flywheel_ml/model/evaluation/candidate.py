"""What gates get and return: the measures of a new model, and a verdict with its reason."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flywheel_ml.core.bundle import Manifest, Slice

TOLERATED_STANDARD_ERRORS = 2.0
"""Tolerance in standard errors, so that a good model of a small table is not refused by chance."""


class Candidate(NamedTuple):
    """Measurements of a new model that the gates check.

    `champion_score` is the champion's headline measure (ROC AUC for classes, R² for numbers) on the candidate's own
    test rows; None if there is no champion. If the champion cannot predict those rows, `champion_problem` has the
    reason. The flow measures the rest, because it is not part of the bundle: `latency_ms` is the median time of a
    single row and `latency_cpu_ms` its processor time, `size_mb` the size of all files, `feature_us` the microseconds
    a row that each feature costs, and `unstable` the faults that extreme inputs showed. `interval_level` and `groups`
    are those of params.yaml.
    """

    manifest: Manifest
    champion_score: float | None = None
    champion_problem: str = ""
    latency_ms: float | None = None
    latency_cpu_ms: float | None = None
    size_mb: float | None = None
    interval_level: float | None = None
    groups: tuple[str, ...] = ()
    input_columns: tuple[str, ...] | None = None
    feature_us: Mapping[str, float] | None = None
    unstable: tuple[str, ...] | None = None


class GateResult(NamedTuple):
    """Result of one gate: whether the model passes, and the figures behind it."""

    gate: str
    passed: bool
    reason: str


class MissingMeasure(Exception):
    """A measure that a gate needs is missing or not finite; the gate then refuses the model."""


Gate = Callable[[Candidate, Any], tuple[bool, str]]
"""Whether a candidate passes under the thresholds of params.yaml (`GateParams`, or the project's own), and why."""


def get_measure(candidate: Candidate, part: str, name: str) -> float:
    """A finite measure of the evaluation, for example the `roc_auc` of `test`.

    Raises:
        MissingMeasure: there is none.
    """
    found = candidate.manifest.metrics.get(part, {}).get(name)
    if found is None:
        raise MissingMeasure(f"the evaluation has no {part} {name}")
    return require_finite(found, f"{part} {name}")


def get_slice_measure(part: Slice, name: str) -> float:
    """A finite measure of one slice; raises as `get_measure`."""
    found = part.metrics.get(name)
    if found is None:
        raise MissingMeasure(f"the evaluation has no {name} of {part.column} '{part.value}'")
    return require_finite(found, f"{name} of {part.column} '{part.value}'")


def require_finite(found: float, name: str) -> float:
    """Return a measure, called `name` in the error; raises as `get_measure` if it is not finite."""
    if not math.isfinite(found):
        raise MissingMeasure(f"{name} is {found}")
    return found
