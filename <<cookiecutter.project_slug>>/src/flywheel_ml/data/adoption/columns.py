"""Builds the column entries of contract.yaml: names, types, ranges, categories."""

import math
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any

import polars as pl

from flywheel_ml.core.contract import DEFAULT_DATETIME_FEATURES, SCORE_COLUMNS, DatetimeFeature, Role
from flywheel_ml.data.adoption import issues, name_heuristics
from flywheel_ml.data.adoption.labels import Labels
from flywheel_ml.data.adoption.profiling import ColumnProfile

Entry = dict[str, Any]
"""A column in contract.yaml: name, type, and every key that differs from its default."""

MAX_CATEGORIES = 128
"""Up to this number, categories are listed; a text column with more is target-encoded."""
MAX_UNKNOWN_SHARE = 0.01
MIN_SEASONAL_SPAN = timedelta(days=700)
"""Shortest time span in which a yearly season can be distinguished from a trend."""
RANGE_MARGIN = 0.5
"""How far a range extends beyond the seen values on each side, as a share of their span."""


def map_names(of_table: Collection[str]) -> dict[str, str]:
    """Map the table's names to contract names; only names reserved for scoring change."""
    named = {}
    for name in of_table:
        new = name
        while new in SCORE_COLUMNS or (new != name and new in of_table):
            new += "_given" if new == name else "_"
        named[name] = new
    return named


def build_entry(name: str, column: ColumnProfile, role: Role, labels: Labels, sample: pl.Series) -> Entry:
    """Build a column's entry of contract.yaml; `sample` holds some of its values."""
    found: Entry = {"name": name, "type": column.parse.type}
    if role == "target":
        classes = (
            {
                "type": "integer" if isinstance(labels.classes[0], int) else "string",
                "role": "target",
                "categories": list(labels.classes),
            }
            if labels.classes
            else {"role": "target"}
        )
        return found | classes | _describe_cells(name, column)
    if role != "feature":
        found["role"] = role
    if column.missing and role in ("feature", "ignored"):
        found["nullable"] = True
    if role == "feature":
        found |= _describe_values(column, sample)
    if role in ("feature", "time") and column.parse.type == "datetime":
        chosen, _ = choose_datetime_features(column, role, sample)
        found |= {} if tuple(chosen) == DEFAULT_DATETIME_FEATURES else {"datetime_features": chosen}
    if column.parse.unit:
        found["unit"] = column.parse.unit
    if name_heuristics.is_personal(column.name):
        found["personal"] = True
    return found | _describe_cells(name, column)


def _describe_cells(name: str, column: ColumnProfile) -> Entry:
    """Build the keys of contract.yaml that describe how the cells are written."""
    found: Entry = {}
    if name != column.name:
        found["source"] = column.name
    if column.parse.time_zone:
        found["time_zone"] = column.parse.time_zone
    if written := column.parse.parse.model_dump(mode="json", exclude_defaults=True):
        found["parse"] = written
    return found


def choose_datetime_features(column: ColumnProfile, role: Role, sample: pl.Series) -> tuple[list[DatetimeFeature], str]:
    """Choose the datetime features of a column; returns them and the reason."""
    chosen: list[DatetimeFeature] = []
    why = []
    if (sample.dt.truncate("1d") == sample).all():
        why.append("dates without a time of day")
    else:
        chosen.append("hour")
    chosen.append("weekday")
    span = column.maximum - column.minimum if column.distinct else timedelta()
    if span >= MIN_SEASONAL_SPAN:
        chosen.append("year_cycle")
        why.append(f"{span.days / 365.25:.0f} years")
    else:
        # Within one year, a split by time would confuse a trend with a season.
        why.append("less than two years, so no seasons")
    if role == "feature":
        chosen.append("elapsed")
    return chosen, f"{', '.join(chosen)} ({'; '.join(why)})"


def _describe_values(column: ColumnProfile, sample: pl.Series) -> Entry:
    if column.parse.type == "string":
        if column.values and len(column.values) <= MAX_CATEGORIES:
            return {"categories": sorted(column.values), "max_unknown_share": MAX_UNKNOWN_SHARE}
        return {"free_text": True} if issues.is_free_text(sample) else {}
    limits = choose_range(column)
    return {"range": limits} if limits else {}


def choose_range(column: ColumnProfile) -> list[float] | None:
    """The range of a number: the seen values widened by `RANGE_MARGIN`, not across zero; None if all are equal."""
    low, high = column.minimum, column.maximum
    if column.parse.type not in ("float", "integer") or low is None or low == high:
        return None
    if column.parse.type == "integer" and (low, high) == (0, 1):
        return [0, 1]
    span = float(high) - float(low)
    if not math.isfinite(span * 2):
        return None
    limits = [
        _round_outward(low - span * RANGE_MARGIN, span, math.floor),
        _round_outward(high + span * RANGE_MARGIN, span, math.ceil),
    ]
    if low >= 0:
        limits[0] = max(0.0, limits[0])
    if high <= 0:
        limits[1] = min(0.0, limits[1])
    if column.parse.type == "integer":
        return [math.floor(limits[0]), math.ceil(limits[1])]
    return [int(limit) for limit in limits] if all(limit.is_integer() for limit in limits) else limits


def _round_outward(value: float, span: float, towards: Callable[[float], int]) -> float:
    step = 10.0 ** math.floor(math.log10(span) - 1)
    # Through text, so that 0.30000000000000004 is written 0.3.
    return float(f"{towards(value / step) * step:.12g}")


def describe_entry(column: Entry) -> Iterator[str]:
    """Describe a column's allowed values in a few words each."""
    if "range" in column:
        yield "{:g} to {:g}".format(*column["range"])
    if "categories" in column:
        shown = ", ".join(str(value) for value in column["categories"][:4])
        yield shown + (f", … ({len(column['categories'])})" if len(column["categories"]) > 4 else "")
    if column.get("nullable"):
        yield "may be missing"
    if column.get("personal"):
        yield "personal"
