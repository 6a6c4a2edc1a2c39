"""Assigns each column a role (id, time, feature, weight or ignored) with the reason."""

from datetime import datetime
from typing import NamedTuple

import polars as pl

from flywheel_ml.core.contract import Role
from flywheel_ml.data.adoption import issues, name_heuristics
from flywheel_ml.data.adoption.columns import MAX_CATEGORIES
from flywheel_ml.data.adoption.overrides import NO_TIME, Overrides, SplitMethod
from flywheel_ml.data.adoption.profiling import ColumnProfile, TableProfile
from flywheel_ml.utils.errors import ConfigError

MIN_ROWS_PER_CATEGORY = 3
MIN_TIMESTAMPS = 20
MIN_ENTITIES = 20


class AssignedRole(NamedTuple):
    """A role and its reason."""

    role: Role
    why: str


class Roles(NamedTuple):
    """The role of every column; `time` and `group` are empty where there is none."""

    assigned: dict[str, AssignedRole]
    split_method: SplitMethod
    time: str
    group: str

    @property
    def features(self) -> list[str]:
        """Columns with role feature, in order."""
        return [name for name, found in self.assigned.items() if found.role == "feature"]


def assign_roles(profile: TableProfile, target: str, overrides: Overrides, now: datetime) -> Roles:
    """Assign each column a role, and choose how the table is split.

    Raises:
        ConfigError: a column that an option names cannot have that role.
    """
    _check_overrides(profile, overrides)
    time, why = _choose_time(profile, target, overrides, now)
    user_roles: dict[str, AssignedRole] = {
        **{name: AssignedRole("ignored", "you said so") for name in (*overrides.ignore, overrides.group) if name},
        **{name: AssignedRole("feature", "you said so") for name in overrides.feature},
        **({overrides.id: AssignedRole("id", "you said so")} if overrides.id else {}),
        **({overrides.weight: AssignedRole("weight", "you said so")} if overrides.weight else {}),
        **({time: AssignedRole("time", why)} if time else {}),
        target: AssignedRole("target", "you said so"),
    }
    split_method: SplitMethod = overrides.split or ("time" if time and not overrides.group else "hash")
    if split_method == "time" and not time:
        raise ConfigError("--split time: no column can be the time of a row; name one with --time COLUMN")
    group = overrides.group or next(
        (n for n, c in profile.columns.items() if n not in user_roles and _is_repeated_entity(c, profile)), ""
    )
    given = {name: user_roles.get(name) or _choose_role(column, profile) for name, column in profile.columns.items()}
    if split_method == "hash" and group and not overrides.group:
        given[group] = AssignedRole("ignored", "identifies an entity with several rows: the split keeps them together")
    _keep_one(given, "id", overrides.id)
    _keep_one(given, "weight", overrides.weight)
    return Roles(given, split_method, time, group if split_method == "hash" else "")


def _check_overrides(profile: TableProfile, overrides: Overrides) -> None:
    if overrides.time not in ("", NO_TIME):
        column = profile.columns[overrides.time]
        if column.parse.type != "datetime":
            raise ConfigError(f"--time: '{column.name}' contains no parseable dates ({column.parse.description})")
        if column.missing:
            raise ConfigError(
                f"--time: '{column.name}' is missing in {column.missing:,} rows; every row needs its time"
            )
    if overrides.id:
        column = profile.columns[overrides.id]
        if not column.unique or column.missing:
            raise ConfigError(f"--id: '{column.name}' does not name each row: values are missing or repeated")
    if overrides.weight and not _can_weigh(profile.columns[overrides.weight]):
        column = profile.columns[overrides.weight]
        raise ConfigError(
            f"--weight: '{column.name}' cannot weigh rows; every row needs a number of 0 or more "
            f"({column.parse.description}, {column.missing:,} missing, the smallest is {column.minimum})"
        )
    if overrides.group and profile.columns[overrides.group].missing:
        raise ConfigError(f"--group: '{overrides.group}' is missing in some rows; every row needs its group")


def _choose_time(profile: TableProfile, target: str, overrides: Overrides, now: datetime) -> tuple[str, str]:
    if overrides.time:
        return ("", "") if overrides.time == NO_TIME else (overrides.time, "you said so")
    taken = {target, overrides.id, overrides.group, overrides.weight, *overrides.ignore, *overrides.feature}
    fitting = [
        name for name, column in profile.columns.items() if name not in taken and _can_be_time(column, profile, now)
    ]
    if not fitting:
        return "", ""
    # `min` keeps the first of equals, which is the first column.
    name = min(fitting, key=name_heuristics.rank_as_time)
    others = f", chosen from {len(fitting)} such columns" if len(fitting) > 1 else ""
    return name, f"every row has one, and {_approximate(profile.columns[name].distinct)} differ{others}"


def _can_be_time(column: ColumnProfile, profile: TableProfile, now: datetime) -> bool:
    return (
        column.parse.type == "datetime"
        and not column.parse.unclear
        and not column.missing
        and column.distinct >= MIN_TIMESTAMPS
        and not name_heuristics.is_other_time(column.name)
        and issues.future_share(profile.sample[column.name], now) <= 0.01
        and _can_be_split(profile.sample[column.name])
    )


def _can_be_split(timestamps: pl.Series) -> bool:
    """Whether a split by time leaves rows in each part; not if most rows share one timestamp."""
    ends = [timestamps.quantile(share, "nearest") for share in (0.0, 0.7, 0.85)]
    return len(set(ends)) == len(ends)


def _is_repeated_entity(column: ColumnProfile, profile: TableProfile) -> bool:
    """Whether a column identifies an entity with more than one row."""
    if column.parse.type not in ("string", "integer") or column.missing or column.unique:
        return False
    if not MIN_ENTITIES <= column.distinct <= 0.95 * profile.rows:
        return False
    if name_heuristics.is_identifier(column.name):
        return column.distinct > MAX_CATEGORIES or name_heuristics.is_entity(column.name)
    # `customer` names one; `customer_age` counts years.
    return (
        name_heuristics.is_entity(column.name)
        and name_heuristics.split_words(column.name)[-1] in name_heuristics.ENTITY_WORDS
    )


def _choose_role(column: ColumnProfile, profile: TableProfile) -> AssignedRole:
    if column.missing == profile.rows:
        return AssignedRole("ignored", "no row has a value")
    if column.distinct == 1 and not column.missing:
        return AssignedRole("ignored", "the same value in every row")
    found = None
    if _can_weigh(column) and column.minimum > 0 and name_heuristics.is_weight(column.name):
        return AssignedRole("weight", "how much a row counts, by its name; --feature makes it an input")
    if column.parse.type == "string":
        found = _choose_text_role(column, profile)
    elif column.parse.type == "integer":
        found = _choose_integer_role(column, profile)
    hint = f"; --weight {column.name} if it says how much a row counts"
    needs_hint = _can_weigh(column) and name_heuristics.may_be_weight(column.name)
    return found or AssignedRole("feature", column.parse.description + (hint if needs_hint else ""))


def _can_weigh(column: ColumnProfile) -> bool:
    is_number = column.parse.type in ("float", "integer")
    return is_number and not column.missing and column.distinct > 1 and column.minimum >= 0


def _choose_integer_role(column: ColumnProfile, profile: TableProfile) -> AssignedRole | None:
    is_identifier, rows = name_heuristics.is_identifier(column.name), profile.rows
    is_row_counter = issues.is_row_counter(profile, column.name)
    if (
        column.unique
        and not column.missing
        and is_identifier
        and not (is_row_counter and name_heuristics.is_library_name(column.name))
    ):
        return AssignedRole("id", "a whole number that names each row")
    if is_row_counter:
        return AssignedRole("ignored", "counts the rows: an id that looks like a number")
    if is_identifier and column.distinct > max(MAX_CATEGORIES, 0.05 * (rows - column.missing)):
        return AssignedRole("ignored", f"an id that looks like a number: {_approximate(column.distinct)} distinct")
    return None


def _choose_text_role(column: ColumnProfile, profile: TableProfile) -> AssignedRole:
    present = profile.rows - column.missing
    if column.unique and not column.missing and name_heuristics.is_identifier(column.name):
        return AssignedRole("id", "a text that names each row")
    if column.values is not None and len(column.values) <= MAX_CATEGORIES:
        count = len(column.values)
        if count <= 2 or present >= MIN_ROWS_PER_CATEGORY * count:
            return AssignedRole("feature", f"{count} categor{'ies' if count != 1 else 'y'}")
    if issues.is_free_text(profile.sample[column.name]):
        return AssignedRole("feature", "free text: its words count, if they help on the validation rows")
    if column.parse.unclear or column.unique:
        return AssignedRole(
            "ignored", column.parse.description if column.parse.unclear else "a different text in every row"
        )
    if not name_heuristics.is_identifier(column.name) and present >= MIN_ROWS_PER_CATEGORY * column.distinct:
        each = present / column.distinct
        return AssignedRole(
            "feature", f"{_approximate(column.distinct)} categories of {each:.0f} rows each: the target's mean in each"
        )
    return AssignedRole(
        "ignored", f"{_approximate(column.distinct)} distinct texts in {present:,} rows: too many for categories"
    )


def _keep_one(given: dict[str, AssignedRole], role: Role, chosen: str) -> None:
    """Keep a role for one column only: the one that was named, or the first."""
    found = [name for name, one in given.items() if one.role == role]
    kept = chosen or next(iter(found), "")
    for name in found:
        if name != kept:
            given[name] = AssignedRole("ignored", f"is another {role} next to '{kept}'")


def _approximate(count: int) -> str:
    return f"{count:,}" if count < 4096 else f"about {round(count, 2 - len(str(count))):,}"
