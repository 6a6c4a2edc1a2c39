"""What each column is for: the row's name, its moment, an input, or nothing, each with the reason."""

from datetime import datetime
from typing import NamedTuple

import polars as pl

from flywheel_ml.core.contract import Role
from flywheel_ml.data.adoption import issues, name_heuristics
from flywheel_ml.data.adoption.columns import MOST_CATEGORIES
from flywheel_ml.data.adoption.overrides import NO_TIME, By, Overrides
from flywheel_ml.data.adoption.profiling import ColumnProfile, Profile
from flywheel_ml.utils.errors import ConfigError

ROWS_A_CATEGORY = 3
FEWEST_MOMENTS = 20
FEWEST_ENTITIES = 20


class Given(NamedTuple):
    """A role and why."""

    role: Role
    why: str


class Roles(NamedTuple):
    """The role of every column; `time` and `group` are empty where there is none."""

    given: dict[str, Given]
    by: By
    time: str
    group: str

    @property
    def features(self) -> list[str]:
        """Columns with role feature, in order."""
        return [name for name, found in self.given.items() if found.role == "feature"]


def give(profile: Profile, target: str, overrides: Overrides, now: datetime) -> Roles:
    """Give each column a role, and with them how the table is split.

    Raises:
        ConfigError: a column that was named for a role cannot have it.
    """
    _check(profile, overrides)
    time, why = _time(profile, target, overrides, now)
    said: dict[str, Given] = {
        **{name: Given("ignored", "you said so") for name in (*overrides.ignore, overrides.group) if name},
        **{name: Given("feature", "you said so") for name in overrides.feature},
        **({overrides.id: Given("id", "you said so")} if overrides.id else {}),
        **({overrides.weight: Given("weight", "you said so")} if overrides.weight else {}),
        **({time: Given("time", why)} if time else {}),
        target: Given("target", "you said so"),
    }
    by: By = overrides.split or ("time" if time and not overrides.group else "hash")
    if by == "time" and not time:
        raise ConfigError("--split time: no column can be the time of a row; name one with --time COLUMN")
    group = overrides.group or next(
        (n for n, c in profile.columns.items() if n not in said and _repeats(c, profile)), ""
    )
    given = {name: said.get(name) or _role(column, profile) for name, column in profile.columns.items()}
    if by == "hash" and group and not overrides.group:
        given[group] = Given("ignored", "names whom a row is about, in several rows: the split keeps them together")
    _keep_one(given, "id", overrides.id)
    _keep_one(given, "weight", overrides.weight)
    return Roles(given, by, time, group if by == "hash" else "")


def _check(profile: Profile, overrides: Overrides) -> None:
    if overrides.time not in ("", NO_TIME):
        column = profile.columns[overrides.time]
        if column.parse.type != "datetime":
            raise ConfigError(f"--time: '{column.name}' holds no dates that can be told ({column.parse.told})")
        if column.missing:
            raise ConfigError(
                f"--time: '{column.name}' is missing in {column.missing:,} rows; every row needs its time"
            )
    if overrides.id:
        column = profile.columns[overrides.id]
        if not column.unique or column.missing:
            raise ConfigError(f"--id: '{column.name}' does not name each row: values are missing or stand twice")
    if overrides.weight and not _can_weigh(profile.columns[overrides.weight]):
        column = profile.columns[overrides.weight]
        raise ConfigError(
            f"--weight: '{column.name}' cannot weigh rows; every row needs a number of 0 or more "
            f"({column.parse.told}, {column.missing:,} missing, the smallest is {column.minimum})"
        )
    if overrides.group and profile.columns[overrides.group].missing:
        raise ConfigError(f"--group: '{overrides.group}' is missing in some rows; every row needs its group")


def _time(profile: Profile, target: str, overrides: Overrides, now: datetime) -> tuple[str, str]:
    if overrides.time:
        return ("", "") if overrides.time == NO_TIME else (overrides.time, "you said so")
    taken = {target, overrides.id, overrides.group, overrides.weight, *overrides.ignore, *overrides.feature}
    fitting = [
        name for name, column in profile.columns.items() if name not in taken and _tells_time(column, profile, now)
    ]
    if not fitting:
        return "", ""
    # `sorted` and `min` keep the first of equals, which is the column that stands first.
    name = min(fitting, key=name_heuristics.rank_as_moment)
    beside = f", chosen of {len(fitting)} such columns" if len(fitting) > 1 else ""
    return name, f"every row has one, and {_about(profile.columns[name].distinct)} differ{beside}"


def _tells_time(column: ColumnProfile, profile: Profile, now: datetime) -> bool:
    return (
        column.parse.type == "datetime"
        and not column.parse.unclear
        and not column.missing
        and column.distinct >= FEWEST_MOMENTS
        and not name_heuristics.names_another_moment(column.name)
        and issues.future(profile.sample[column.name], now) <= 0.01
        and _spreads(profile.sample[column.name])
    )


def _spreads(moments: pl.Series) -> bool:
    """Whether a split by time leaves rows on each side: not where most rows share one moment."""
    ends = [moments.quantile(share, "nearest") for share in (0.0, 0.7, 0.85)]
    return len(set(ends)) == len(ends)


def _repeats(column: ColumnProfile, profile: Profile) -> bool:
    """Whether a column names an entity that has more than one row."""
    if column.parse.type not in ("string", "integer") or column.missing or column.unique:
        return False
    if not FEWEST_ENTITIES <= column.distinct <= 0.95 * profile.rows:
        return False
    if name_heuristics.names_a_row(column.name):
        return column.distinct > MOST_CATEGORIES or name_heuristics.names_an_entity(column.name)
    # `customer` names one; `customer_age` counts years.
    return (
        name_heuristics.names_an_entity(column.name)
        and name_heuristics.words(column.name)[-1] in name_heuristics.ENTITIES
    )


def _role(column: ColumnProfile, profile: Profile) -> Given:
    if column.missing == profile.rows:
        return Given("ignored", "no row has a value")
    if column.distinct == 1 and not column.missing:
        return Given("ignored", "the same value in every row")
    found = None
    if _can_weigh(column) and column.minimum > 0 and name_heuristics.names_a_weight(column.name):
        return Given("weight", "how much a row counts, by its name; --feature makes it an input")
    if column.parse.type == "string":
        found = _role_of_text(column, profile)
    elif column.parse.type == "integer":
        found = _role_of_integer(column, profile)
    asked = f"; --weight {column.name} if it says how much a row counts"
    is_asked = _can_weigh(column) and name_heuristics.may_name_a_weight(column.name)
    return found or Given("feature", column.parse.told + (asked if is_asked else ""))


def _can_weigh(column: ColumnProfile) -> bool:
    is_number = column.parse.type in ("float", "integer")
    return is_number and not column.missing and column.distinct > 1 and column.minimum >= 0


def _role_of_integer(column: ColumnProfile, profile: Profile) -> Given | None:
    named, rows = name_heuristics.names_a_row(column.name), profile.rows
    counts = issues.is_row_counter(profile, column.name)
    if column.unique and not column.missing and named and not (counts and name_heuristics.is_library_name(column.name)):
        return Given("id", "a whole number that names each row")
    if counts:
        return Given("ignored", "counts the rows: an id that looks like a number")
    if named and column.distinct > max(MOST_CATEGORIES, 0.05 * (rows - column.missing)):
        return Given("ignored", f"an id that looks like a number: {_about(column.distinct)} distinct")
    return None


def _role_of_text(column: ColumnProfile, profile: Profile) -> Given:
    present = profile.rows - column.missing
    if column.unique and not column.missing and name_heuristics.names_a_row(column.name):
        return Given("id", "a text that names each row")
    if column.values is not None and len(column.values) <= MOST_CATEGORIES:
        count = len(column.values)
        if count <= 2 or present >= ROWS_A_CATEGORY * count:
            return Given("feature", f"{count} categor{'ies' if count != 1 else 'y'}")
    if issues.is_free_text(profile.sample[column.name]):
        return Given("feature", "free text: its words count, if they help on the validation rows")
    if column.parse.unclear or column.unique:
        return Given("ignored", column.parse.told if column.parse.unclear else "a different text in every row")
    if not name_heuristics.names_a_row(column.name) and present >= ROWS_A_CATEGORY * column.distinct:
        each = present / column.distinct
        return Given(
            "feature", f"{_about(column.distinct)} categories of {each:.0f} rows each: the target's mean in each"
        )
    return Given("ignored", f"{_about(column.distinct)} distinct texts in {present:,} rows: too many for categories")


def _keep_one(given: dict[str, Given], role: Role, said: str) -> None:
    """Leave a role to one column: the one that was named, or the first."""
    found = [name for name, one in given.items() if one.role == role]
    kept = said or next(iter(found), "")
    for name in found:
        if name != kept:
            given[name] = Given("ignored", f"is one more {role}, beside '{kept}'")


def _about(count: int) -> str:
    return f"{count:,}" if count < 4096 else f"about {round(count, 2 - len(str(count))):,}"
