"""Inclusion: how far the quality of a model differs between the groups of declared columns.

The measure is the recall of the positive class for two classes ("equal opportunity": Hardt, Price and Srebro 2016,
"Equality of Opportunity in Supervised Learning"), accuracy for more classes, and the mean absolute error, as a share
of that of all rows, for numbers. Chance is judged by adjusted proportions (Agresti and Coull 1998, "Approximate Is
Better than 'Exact' for Interval Estimation of Binomial Proportions"), whose standard error is not 0 at 0 and 1.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

from flywheel_ml.core.bundle import Manifest, Slice
from flywheel_ml.core.contract import Task
from flywheel_ml.core.params import GateParams
from flywheel_ml.model.evaluation.candidate import TOLERATED_STANDARD_ERRORS, Candidate

MEASURES: dict[Task, str] = {"binary": "recall", "multiclass": "accuracy", "regression": "mae"}
MIN_POSITIVES = 10
"""Fewest rows of the positive class from which the recall of a group is judged."""


class GroupGap(NamedTuple):
    """The two groups of a column that differ most, and the part of their difference that chance does not explain."""

    column: str
    best: str
    worst: str
    difference: float
    beyond_chance: float
    groups: int


def compute_gaps(manifest: Manifest, columns: Sequence[str]) -> Iterator[GroupGap]:
    """Yield the gap of each column of which at least two groups have enough rows, and positives for two classes."""
    name = MEASURES[manifest.task]
    scale = manifest.metrics["test"].get(name, 0.0) if manifest.task == "regression" else 1.0
    for column in columns:
        judged = [
            _judge(manifest.task, part, scale or 1.0)
            for part in manifest.slices
            if part.column == column and part.enough and name in part.metrics
            if manifest.task != "binary" or _count_rows(manifest.task, part) >= MIN_POSITIVES
        ]
        if len(judged) < 2:
            continue
        # A lower error is better, a lower recall is worse.
        judged.sort(key=lambda one: one.measure, reverse=manifest.task != "regression")
        width = compute_width(len(judged))
        pairs = list(itertools.combinations(judged, 2))
        excess = [_compute_excess(best, worst, width) for best, worst in pairs]
        beyond = max(excess)
        best, worst = pairs[excess.index(beyond)]
        gap = abs(best.measure - worst.measure)
        yield GroupGap(column, best.name, worst.name, gap, max(0.0, beyond), len(judged))


def compute_width(groups: int) -> float:
    """Tolerated standard errors of a difference, so that all pairs of groups share the error of one (Bonferroni)."""
    error = 2 * (1 - NormalDist().cdf(TOLERATED_STANDARD_ERRORS))
    return NormalDist().inv_cdf(1 - error / 2 / math.comb(groups, 2))


def check_groups(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The quality of no group of a declared column is far below that of another."""
    if not candidate.groups:
        return True, "does not apply: `evaluate.groups` in params.yaml lists no column"
    gaps = list(compute_gaps(candidate.manifest, candidate.groups))
    if not gaps:
        return True, f"does not apply: no two groups of {', '.join(candidate.groups)} have enough rows or positives"
    widest = max(gaps, key=lambda gap: gap.beyond_chance)
    name = MEASURES[candidate.manifest.task]
    text = (
        f"{name} of {widest.column} '{widest.worst}' and '{widest.best}' differs by {widest.difference:.3f}, "
        f"{widest.beyond_chance:.3f} beyond chance"
    )
    if params.max_group_gap is None:
        return True, f"{text}; no limit in params.yaml"
    return widest.beyond_chance <= params.max_group_gap, f"{text}, allowed {params.max_group_gap:g}"


class _Group(NamedTuple):
    """A group's measure, and the estimate with its standard error from which chance is judged."""

    name: str
    measure: float
    estimate: float
    error: float


def _judge(task: Task, part: Slice, scale: float) -> _Group:
    measure = part.metrics[MEASURES[task]] / scale
    if task == "regression":
        # Of absolute errors, spread and mean are about equal.
        return _Group(part.value, measure, measure, measure / math.sqrt(part.rows))
    rows = _count_rows(task, part)
    adjusted = (measure * rows + 2) / (rows + 4)
    return _Group(part.value, measure, adjusted, math.sqrt(adjusted * (1 - adjusted) / (rows + 4)))


def _compute_excess(one: _Group, other: _Group, width: float) -> float:
    """Compute by how much two groups differ more than by `width` standard errors."""
    return abs(one.estimate - other.estimate) - width * math.hypot(one.error, other.error)


def _count_rows(task: Task, part: Slice) -> int:
    """Count the rows that a group's measure is about."""
    return round(part.rows * part.metrics["prevalence"]) if task == "binary" else part.rows
