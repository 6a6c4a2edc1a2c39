"""From a profile to a proposal: contract, split and slices, each decision with its reason, and the issues.

Nothing here reads or writes files: a proposal depends on the profile, target, overrides and current time.
"""

import re
from datetime import datetime
from typing import Any, NamedTuple

import polars as pl

from flywheel_ml.data.adoption import columns, issues, labels, name_heuristics, roles
from flywheel_ml.data.adoption.columns import Entry
from flywheel_ml.data.adoption.issues import Issue
from flywheel_ml.data.adoption.overrides import Overrides, Task
from flywheel_ml.data.adoption.profiling import TableProfile
from flywheel_ml.data.adoption.roles import AssignedRole, Roles
from flywheel_ml.utils.errors import DataError

VALIDATION, TEST = 0.15, 0.15
TRAINING = 1 - TEST - VALIDATION
MAX_SLICES, MAX_SLICE_VALUES = 3, 20
LARGE, MIN_ROWS_PER_CLASS = 10_000, 20


class Decision(NamedTuple):
    """A decision about a column, or about the table if `column` is empty, and its reason."""

    column: str
    what: str
    why: str


class Proposal(NamedTuple):
    """Everything that adopting a table decides. `columns` are entries of contract.yaml, in the table's order.

    `sources` maps each of their names to the column's name in the user's table.
    """

    name: str
    task: Task
    columns: tuple[Entry, ...]
    sources: dict[str, str]
    split: dict[str, Any]
    slices: tuple[str, ...]
    groups: tuple[str, ...]
    min_slice_rows: int
    early_stopping: bool
    decisions: tuple[Decision, ...]
    issues: tuple[Issue, ...]


def propose(profile: TableProfile, target: str, overrides: Overrides, now: datetime) -> Proposal:
    """Make all decisions; timestamps after `now` (UTC, without time zone) are in the future.

    Raises:
        ConfigError: an override names what the table does not have, or contradicts another.
        DataError: no column is left to learn from.
    """
    overrides.check(target, profile.columns, profile.left_out)
    wanted = labels.infer_labels(profile.columns[target], overrides)
    found = roles.assign_roles(profile, target, overrides, now)
    outside = _find_classes_outside_training(profile, target, wanted.task, found, overrides)
    if outside and found.split_method == "time" and overrides.split != "time":
        found = roles.assign_roles(profile, target, overrides._replace(split="hash"), now)
        outside += _find_classes_outside_training(profile, target, wanted.task, found, overrides)
    labelled = profile.sample.filter(pl.col(target).is_not_null())
    leaks = [
        leak._replace(severity="warned") if leak.column in overrides.feature else leak
        for leak in issues.detect_leakage(labelled, target, found.features, wanted.task)
    ]
    for leak in leaks:
        if leak.severity == "handled":
            found.assigned[leak.column] = AssignedRole(
                "ignored", f"{leak.evidence}, so most likely known only afterwards"
            )
    if not found.features and not found.time:
        raise DataError(f"{profile.name}: no column is left to predict '{target}' from; --feature COLUMN keeps one")
    named = columns.map_names(profile.columns)
    entries = tuple(
        columns.build_entry(named[name], column, found.assigned[name].role, wanted, profile.sample[name])
        for name, column in profile.columns.items()
    )
    found_issues = [
        *issues.detect_issues(profile, target, wanted.task, {n: g.role for n, g in found.assigned.items()}, now, named),
        *leaks,
        *outside,
    ]
    split, why = _choose_split(found, profile, named)
    return Proposal(
        slugify(overrides.name or profile.name),
        wanted.task,
        entries,
        {new: old for old, new in named.items()},
        split,
        _choose_slices(entries),
        _choose_groups(entries),
        max(20, min(200, profile.rows // 100)),
        _uses_early_stopping(profile, target, wanted.task),
        (
            Decision("", f"task: {wanted.task}", wanted.why),
            Decision("", f"split: by {found.split_method}", why),
            *(
                Decision(named[name], given.role, _explain_role(name, given, profile))
                for name, given in found.assigned.items()
            ),
        ),
        tuple(sorted(found_issues, key=lambda issue: issues.SEVERITIES.index(issue.severity))),
    )


def _find_classes_outside_training(
    profile: TableProfile, target: str, task: Task, found: Roles, overrides: Overrides
) -> tuple[Issue, ...]:
    """Find the classes that the split would keep out of training."""
    if task == "regression" or not (found.split_method == "time" or found.group):
        return ()
    if found.split_method == "hash":
        return issues.find_grouped_classes(profile, target, found.group, TRAINING)
    late = issues.find_late_classes(profile, target, found.time, TRAINING)
    if overrides.split != "time":
        return late
    remedy = "leave out --split time, or drop these rows"
    return tuple(issue._replace(severity="refused", remedy=remedy) for issue in late)


def _explain_role(name: str, given: AssignedRole, profile: TableProfile) -> str:
    column = profile.columns[name]
    if given.role not in ("feature", "time") or column.parse.type != "datetime":
        return given.why
    return f"{given.why}; parts: {columns.choose_datetime_features(column, given.role, profile.sample[name])[1]}"


def _uses_early_stopping(profile: TableProfile, target: str, task: Task) -> bool:
    """Decide as scikit-learn does, unless a class might be missing from the rows held out for it."""
    rarest = min((profile.columns[target].values or {}).values(), default=0)
    return profile.rows > LARGE and (task == "regression" or rarest >= MIN_ROWS_PER_CLASS)


def slugify(name: str) -> str:
    """Convert to a name valid for files and models: lower-case letters, digits and hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower())) or "table"


def _choose_split(found: Roles, profile: TableProfile, named: dict[str, str]) -> tuple[dict[str, Any], str]:
    shares = {"by": found.split_method, "validation_share": VALIDATION, "test_share": TEST}
    if found.split_method == "time":
        return shares, f"the model is evaluated on later rows, by '{found.time}'"
    if found.group:
        rows = profile.rows / profile.columns[found.group].distinct
        return {
            **shares,
            "group": named[found.group],
        }, f"rows that share '{found.group}' ({rows:.1f} each) stay together"
    if found.time:
        return shares, "you said so, or a class is in the newest rows only: see the issues"
    return shares, "no column says when a row happened"


def _choose_groups(entries: tuple[Entry, ...]) -> tuple[str, ...]:
    """Choose the columns whose names suggest groups of people; without any, the slice with the fewest categories."""
    counts = _count_categories(entries)
    named = tuple(name for name in counts if name_heuristics.is_group(name))[:MAX_SLICES]
    return named or tuple(sorted(_choose_slices(entries), key=lambda name: counts[name])[:1])


def _choose_slices(entries: tuple[Entry, ...]) -> tuple[str, ...]:
    """Choose the features with the fewest categories, in the table's order."""
    counts = _count_categories(entries)
    chosen = sorted(counts, key=lambda name: counts[name])[:MAX_SLICES]
    return tuple(name for name in counts if name in chosen)


def _count_categories(entries: tuple[Entry, ...]) -> dict[str, int]:
    """Count the categories of each feature that has few, in the table's order."""
    counts = {
        entry["name"]: 2 if entry["type"] == "boolean" else len(entry.get("categories", ()))
        for entry in entries
        if entry.get("role", "feature") == "feature"
    }
    return {name: count for name, count in counts.items() if 2 <= count <= MAX_SLICE_VALUES}
