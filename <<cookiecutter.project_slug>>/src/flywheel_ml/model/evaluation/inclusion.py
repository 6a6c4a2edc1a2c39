"""Inclusion: how far the quality of a model differs between the groups of declared columns.

The measure is the recall of the positive class for two classes ("equal opportunity": Hardt, Price and Srebro 2016,
"Equality of Opportunity in Supervised Learning"), accuracy for more classes, and the mean absolute error, as a share
of that of all rows, for numbers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flywheel_ml.core.bundle import Manifest, Slice
from flywheel_ml.core.contract import Task
from flywheel_ml.core.params import GateParams
from flywheel_ml.model.evaluation.candidate import TOLERATED_STANDARD_ERRORS, Candidate

MEASURES: dict[Task, str] = {"binary": "recall", "multiclass": "accuracy", "regression": "mae"}


class GroupGap(NamedTuple):
    """The best and the worst group of a column, and the part of their difference that chance does not explain."""

    column: str
    best: str
    worst: str
    difference: float
    beyond_chance: float
    groups: int


def compute_gaps(manifest: Manifest, columns: Sequence[str]) -> Iterator[GroupGap]:
    """Yield the gap of each column of which at least two groups have enough rows."""
    name = MEASURES[manifest.task]
    scale = manifest.metrics["test"].get(name, 0.0) if manifest.task == "regression" else 1.0
    for column in columns:
        judged = [
            (part.metrics[name] / (scale or 1.0), _compute_error(manifest.task, part, scale or 1.0), part.value)
            for part in manifest.slices
            if part.column == column and part.enough and name in part.metrics
        ]
        if len(judged) < 2:
            continue
        # A lower error is better, a lower recall is worse.
        ordered = sorted(judged, reverse=manifest.task != "regression")
        (best, best_error, best_name), (worst, worst_error, worst_name) = ordered[0], ordered[-1]
        chance = TOLERATED_STANDARD_ERRORS * math.hypot(best_error, worst_error)
        gap = abs(best - worst)
        yield GroupGap(column, best_name, worst_name, gap, max(0.0, gap - chance), len(judged))


def check_groups(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The quality of no group of a declared column is far below that of another."""
    if not candidate.groups:
        return True, "does not apply: `evaluate.groups` in params.yaml lists no column"
    gaps = list(compute_gaps(candidate.manifest, candidate.groups))
    if not gaps:
        return True, f"does not apply: no two groups of {', '.join(candidate.groups)} have enough rows"
    widest = max(gaps, key=lambda gap: gap.beyond_chance)
    name = MEASURES[candidate.manifest.task]
    text = (
        f"{name} of {widest.column} '{widest.worst}' and '{widest.best}' differs by {widest.difference:.3f}, "
        f"{widest.beyond_chance:.3f} beyond chance"
    )
    if params.max_group_gap is None:
        return True, f"{text}; no limit in params.yaml"
    return widest.beyond_chance <= params.max_group_gap, f"{text}, allowed {params.max_group_gap:g}"


def _compute_error(task: Task, part: Slice, scale: float) -> float:
    """Compute the standard error of a group's measure."""
    name = MEASURES[task]
    value = part.metrics[name]
    if task == "regression":
        # Of absolute errors, spread and mean are about equal.
        return value / scale / math.sqrt(part.rows)
    rows = part.rows * (part.metrics["prevalence"] if task == "binary" else 1.0)
    return math.sqrt(value * (1 - value) / max(rows, 1.0))
