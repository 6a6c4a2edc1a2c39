"""Mergeable counts of a table, by contract: the reference that drift is measured against.

Numbers are counted in bins whose edges are quantiles of the reference rows and of the training rows. A value that
repeats has a bin of its own: what lies strictly between two edges is at most 1/256 of either. A
Kolmogorov-Smirnov distance taken on the bins is therefore within 0.005 of the exact one, ties or none.
Counting a window with the reference's bins and adding counts is exact.

A timestamp is counted twice: as it is and, under `<column>.hour`, by its hour of day: the date of any later
window lies outside the reference, so only the hour can be compared. A free text is counted by its number of words.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from flywheel_ml.core.contract import Column, Columns, Contract, is_missing
from flywheel_ml.core.features import DATETIME_FEATURES
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import canonical_json, read_json

BINS = 256
MIN_OWN_BIN_SHARE = 0.001
"""Minimum share of the reference rows for a single value to get its own bin."""
MAX_GAP_SHARE = 0.02
"""Earlier bins are kept while no gap between two edges holds a larger share of the reference rows.

A Kolmogorov-Smirnov distance is then within 0.02 of the exact one, less than half of the default minimum effect.
"""
MAX_CATEGORIES = 1000
PREDICTION = "prediction"
"""Name under which a profile counts the model's own output."""


class Counts(config_model.StrictModel):
    """Counts of one column.

    A numeric column has `edges` e0 < … < ek and k + 2 counts: (-inf, e0], (e0, e1], …, (ek, inf).
    A categorical one has `categories` and as many counts; values beyond them are `unseen`. `untrained` are those of the
    categories that no training row holds.
    """

    kind: Literal["numeric", "categorical"]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    counts: tuple[int, ...]
    missing: int = Field(default=0, ge=0)
    unseen: int = Field(default=0, ge=0)
    untrained: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[int, ...]:
        """Counts of the categories that training rows hold."""
        if not self.untrained:
            return self.counts
        out = set(self.untrained)
        return tuple(rows for name, rows in zip(self.categories, self.counts, strict=True) if name not in out)

    @property
    def unknown(self) -> int:
        """Rows whose value no training row holds."""
        return self.present - sum(self.known)

    @property
    def present(self) -> int:
        """Rows with a value."""
        return sum(self.counts) + self.unseen

    @property
    def rows(self) -> int:
        """All rows counted."""
        return self.present + self.missing

    def merge_bins(self) -> "Counts":
        """Merge the bins that separate a repeated value from those below it, for display."""
        edges = np.array(self.edges)
        kept = np.append(np.nextafter(edges[:-1], np.inf) != edges[1:], True)
        cumulative = np.cumsum(self.counts)[:-1][kept]
        counts = np.diff(cumulative, prepend=0, append=sum(self.counts))
        return self.model_copy(update={"edges": tuple(edges[kept].tolist()), "counts": tuple(counts.tolist())})


class ColumnBins(config_model.StrictModel):
    """The bins or categories of one column, as in `Counts`."""

    kind: Literal["numeric", "categorical"]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()


class Bins(config_model.StrictModel):
    """The bins of every input column and derived feature. Versions with equal bins can share profiles."""

    format: Literal[1] = 1
    columns: dict[str, ColumnBins]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read profile_bins.json.

        Raises:
            ConfigError: it is not what `Profile.bins` wrote.
        """
        try:
            return config_model.parse(read_json(path), cls, name=path.name)
        except ValueError:
            raise ConfigError(f"{path.name} is not valid JSON; delete it, and new bins are chosen") from None

    def text(self) -> str:
        """The bins as canonical JSON."""
        return canonical_json(self.model_dump(mode="json")) + "\n"


class Profile(config_model.StrictModel):
    """Counts of every input column, of derived features and, under `prediction`, of the model's output."""

    version: Literal[1] = 1
    rows: int = Field(ge=0)
    columns: dict[str, Counts]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read profile.json."""
        return config_model.parse(read_json(path), cls, name=path.name)

    def text(self) -> str:
        """The profile as canonical JSON."""
        return canonical_json(self.model_dump(mode="json")) + "\n"

    @property
    def bins(self) -> Bins:
        """The bins of all columns but the prediction, which each model distributes in its own way."""
        return Bins(
            columns={
                name: ColumnBins(kind=counts.kind, edges=counts.edges, categories=counts.categories)
                for name, counts in self.columns.items()
                if name != PREDICTION
            }
        )


def build(
    contract: Contract,
    columns: Columns,
    prediction: np.ndarray,
    drift_features: Mapping[str, np.ndarray] | None = None,
    training: Columns | None = None,
    previous: Bins | None = None,
) -> Profile:
    """Profile of reference rows: chooses the bins and categories, and counts.

    Categories are known from the training rows, so that the rate of unknown ones in the reference is that of any
    later rows. Known from the reference itself, it would be zero, and every later window would differ.

    Args:
        contract: says which columns are counted and how.
        columns: n_rows of every input column.
        prediction: float [n_rows], the model's output (a probability, or a value).
        drift_features: other features to count, see `Featurizer.drift_features`.
        training: the training rows with their drift features; the reference rows themselves if not given.
        previous: the bins of an earlier profile; a column keeps its bins while they resolve the reference rows.
    """
    seen = columns if training is None else training
    inputs = {column.name: columns[column.name] for column in contract.inputs}
    values = {**_compute_hours(inputs), **inputs, **(drift_features or {})}
    trained = values if training is None else {**_compute_hours(training), **training}
    fresh = {
        name: _build_empty_numeric_counts(one, trained.get(name, one))
        for name, one in values.items()
        if name not in inputs
    }
    fresh |= {
        column.name: _build_empty_counts(column, inputs[column.name], seen[column.name]) for column in contract.inputs
    }
    # A category that the contract no longer lists must count as unseen.
    listed = {column.name for column in contract.inputs if column.categories is not None}
    known = {
        name: bins
        for name, bins in (previous.columns if previous else {}).items()
        if name not in listed or set(bins.categories) == set(fresh[name].categories)
    }
    counted = {name: _count(_keep_bins(known.get(name), fresh[name], one), one) for name, one in values.items()}
    counted[PREDICTION] = _count(_build_empty_numeric_counts(prediction, prediction), prediction)
    return Profile(rows=len(prediction), columns=counted)


def count(reference: Profile, columns: Columns, prediction: np.ndarray | None = None) -> Profile:
    """Profile of a window, counted in the bins and categories of `reference`; columns it lacks are left out.

    `columns` may hold more than the contract's: derived features are counted like any number.
    """
    present = {**_compute_hours(columns), **columns}
    if prediction is not None:
        present[PREDICTION] = prediction
    counted = {name: _count(frame, present[name]) for name, frame in reference.columns.items() if name in present}
    return Profile(rows=len(next(iter(columns.values()))), columns=counted)


def merge(profiles: Iterable[Profile]) -> Profile:
    """The profile of all rows together; exact.

    Raises:
        ConfigError: the profiles were counted in different bins, or there is none.
    """
    parts = list(profiles)
    if not parts:
        raise ConfigError("there is nothing to merge: no profile was given")
    first, *rest = parts
    merged: Mapping[str, Counts] = first.columns
    for other in rest:
        if merged.keys() != other.columns.keys():
            raise ConfigError("profiles of different columns cannot be merged; count them against one reference")
        merged = {name: _add_counts(name, counts, other.columns[name]) for name, counts in merged.items()}
    return Profile(rows=sum(profile.rows for profile in parts), columns=dict(merged))


def _add_counts(name: str, a: Counts, b: Counts) -> Counts:
    if (a.kind, a.edges, a.categories) != (b.kind, b.edges, b.categories):
        raise ConfigError(f"column '{name}' was counted in different bins; count both profiles against one reference")
    return a.model_copy(
        update={
            "counts": tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)),
            "missing": a.missing + b.missing,
            "unseen": a.unseen + b.unseen,
        }
    )


def _compute_hours(columns: Columns) -> dict[str, np.ndarray]:
    return {f"{name}.hour": DATETIME_FEATURES["hour"]["hour"](v) for name, v in columns.items() if v.dtype.kind == "M"}


def _build_empty_counts(column: Column, values: np.ndarray, training: np.ndarray) -> Counts:
    if column.type == "boolean":
        return Counts(kind="categorical", categories=("false", "true"), counts=(0, 0))
    if column.type != "string" or column.free_text:
        return _build_empty_numeric_counts(values, training)
    seen = _count_values(training)
    if column.categories is not None:
        names = tuple(str(name) for name in column.categories)
        untrained = tuple(name for name in names if name not in seen)
    else:
        names = tuple(sorted(sorted(seen, key=lambda name: (-seen[name], name))[:MAX_CATEGORIES]))
        untrained = ()
    return Counts(kind="categorical", categories=names, counts=(0,) * len(names), untrained=untrained)


def _build_empty_numeric_counts(values: np.ndarray, training: np.ndarray) -> Counts:
    """Choose edges from both kinds of rows: those of the training rows suit the reference of a later version too."""
    edges = np.union1d(_choose_edges(_to_float(values)), _choose_edges(_to_float(training)))
    if not len(edges):
        return Counts(kind="numeric", edges=(0.0,), counts=(0, 0))
    return Counts(kind="numeric", edges=tuple(edges.tolist()), counts=(0,) * (len(edges) + 1))


def _choose_edges(values: np.ndarray) -> np.ndarray:
    values = values[~np.isnan(values)]
    if not len(values):
        return values
    quantiles = np.quantile(values, np.linspace(0, 1, BINS + 1), method="inverted_cdf")
    distinct, times = np.unique(values, return_counts=True)
    repeated = np.intersect1d(quantiles, distinct[times > MIN_OWN_BIN_SHARE * len(values)])
    edges: np.ndarray = np.union1d(quantiles, np.nextafter(repeated, -np.inf))
    return edges


def _keep_bins(previous: ColumnBins | None, fresh: Counts, values: np.ndarray) -> Counts:
    """Return empty counts in the previous bins if they resolve the values, in fresh bins otherwise."""
    if previous is None or previous.kind != fresh.kind:
        return fresh
    if fresh.kind == "categorical":
        return _keep_categories(previous.categories, fresh)
    if len(previous.edges) < 2:
        return fresh
    kept = Counts(kind="numeric", edges=previous.edges, counts=(0,) * (len(previous.edges) + 1))
    # Later dates are always outside of the bins, and are not compared.
    return kept if values.dtype.kind == "M" or _find_widest_gap(kept, values) <= MAX_GAP_SHARE else fresh


def _keep_categories(previous: tuple[str, ...], fresh: Counts) -> Counts:
    gone = tuple(name for name in previous if name not in fresh.categories)
    if not fresh.categories or not set(fresh.categories) <= set(previous):
        return fresh
    untrained = (*fresh.untrained, *gone)
    return Counts(kind="categorical", categories=previous, counts=(0,) * len(previous), untrained=untrained)


def _find_widest_gap(frame: Counts, values: np.ndarray) -> float:
    """Return the largest share of the values that lies between two edges."""
    counted, edges = _count(frame, values), np.array(frame.edges)
    # A bin between neighbouring floats holds a single value, so it may hold any share.
    is_gap = np.concatenate(([True], np.nextafter(edges[:-1], np.inf) != edges[1:], [True]))
    return float(np.max(np.array(counted.counts), where=is_gap, initial=0)) / max(1, counted.present)


def _count(frame: Counts, values: np.ndarray) -> Counts:
    update: dict[str, Any]
    if frame.kind == "numeric":
        numbers = _to_float(values)
        ordered = np.sort(numbers[~np.isnan(numbers)])
        update = {"counts": _count_in_bins(ordered, frame.edges), "missing": len(numbers) - len(ordered)}
    else:
        seen = _count_values(values)
        counts_by_name = [seen.get(name, 0) for name in frame.categories]
        present = sum(seen.values())
        update = {
            "counts": tuple(counts_by_name),
            "missing": len(values) - present,
            "unseen": present - sum(counts_by_name),
        }
    return frame.model_copy(update=update)


def _count_in_bins(ordered: np.ndarray, edges: tuple[float, ...]) -> tuple[int, ...]:
    """Count sorted values in (-inf, e0], (e0, e1], …, (ek, inf).

    Sorting first takes a fifth of the time that finding a bin for each value takes.
    """
    up_to = np.searchsorted(ordered, np.array(edges), side="right")
    return tuple(np.diff(up_to, prepend=0, append=len(ordered)).tolist())


def _to_float(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "O":
        return np.array([np.nan if text is None else len(text.split()) for text in values], dtype=np.float64)
    if values.dtype.kind != "M":
        return values.astype(np.float64, copy=False)
    seconds = values.astype("datetime64[us]").astype(np.int64) / 1e6
    return np.where(np.isnat(values), np.nan, seconds)


def _count_values(values: np.ndarray) -> Counter[str]:
    """Count each present value; booleans, stored as 0.0 and 1.0, count as "false" and "true"."""
    present = values[~is_missing(values)]
    if values.dtype.kind == "f":
        return Counter({"true": int((present != 0).sum()), "false": int((present == 0).sum())})
    # Not np.unique: its array of fixed width would be as wide as the longest text for every row.
    return Counter(present.tolist())
