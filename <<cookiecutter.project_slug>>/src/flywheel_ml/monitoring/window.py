"""The rows to monitor, counted chunk by chunk; `sources` reads them from the prediction log or a scored file.

A window keeps counts, and single values of labelled rows only, so its size does not grow with unlabelled rows. Merging
windows is exact: parts of a fleet's log can be counted separately and merged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from flywheel_ml.core import profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract, columns_from_rows
from flywheel_ml.core.parsing.rules import IS_BROKEN, build_rules

MISSING_SLICE = "(missing)"
_MAX_PARTS = 32
_HOUR_US = 3_600_000_000


class Chunk(NamedTuple):
    """A chunk of rows: the contract's input columns, and per row [n_rows] its prediction and label.

    `truth` holds the labels as `Contract.encode_target` converts them, NaN if none has arrived. `output` [n_rows, k] is
    as in `metrics.compute_metrics` and needed for labelled rows only. `times` are datetime64[us] or None. `degraded`
    marks rows that a fallback answered instead of the model. `rows_without_digest` is as in `Window`. `variants` and
    `delays` (seconds from a prediction to its label's arrival, NaN if unknown) are None for a scored file.
    """

    columns: Columns
    scores: np.ndarray
    output: np.ndarray
    truth: np.ndarray
    times: np.ndarray | None
    versions: np.ndarray
    degraded: np.ndarray
    rows_without_digest: int = 0
    variants: np.ndarray | None = None
    delays: np.ndarray | None = None


@dataclass(frozen=True)
class Window:
    """The counts of n_rows rows.

    Attributes:
        source: where the rows came from, as text.
        profile: counts of the inputs and of the model's scores, in the bins of the reference.
        rows: number of rows; a fallback answered `degraded` of them.
        versions: model version → rows.
        rows_without_digest: rows logged before model digests; they count as the model's by version alone.
        out_of_range: column → rows beyond the contract's range.
        hours: hours since 1970 → rows, if the rows have timestamps; `first` and `last` are the extremes.
        clock: meaning of the timestamps.
        output, truth: [n_labelled, k], float32 for classes and float64 for numbers, and float64 [n_labelled], as in
            `metrics.compute_metrics`: the rows that the model scored and whose label is known.
        slices: column → values as str objects [n_labelled].
        variants: variant → answered rows; empty for a scored file.
        labelled_variants: str objects [n_labelled], "" for a scored file.
        delays: float64 [n_labelled], seconds from a prediction to its label's arrival, NaN if unknown.
    """

    source: str
    profile: profile.Profile
    rows: int
    degraded: int
    versions: Mapping[str, int]
    out_of_range: Mapping[str, int]
    hours: Mapping[int, int]
    first: datetime | None
    last: datetime | None
    clock: str
    output: np.ndarray
    truth: np.ndarray
    slices: Columns
    rows_without_digest: int = 0
    variants: Mapping[str, int] = field(default_factory=dict)
    labelled_variants: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))
    delays: np.ndarray = field(default_factory=lambda: np.empty(0))


def merge(windows: Iterable[Window]) -> Window:
    """Merge windows; the result is exact.

    Raises:
        ConfigError: the windows have different references, or there are none.
    """
    parts = list(windows)
    first = parts[0]
    return Window(
        source=first.source,
        profile=profile.merge(part.profile for part in parts),
        rows=sum(part.rows for part in parts),
        degraded=sum(part.degraded for part in parts),
        versions=_add_counts(part.versions for part in parts),
        out_of_range=_add_counts(part.out_of_range for part in parts),
        hours=_add_counts(part.hours for part in parts),
        first=min((part.first for part in parts if part.first), default=None),
        last=max((part.last for part in parts if part.last), default=None),
        clock=first.clock,
        output=np.concatenate([part.output for part in parts]),
        truth=np.concatenate([part.truth for part in parts]),
        slices={name: np.concatenate([part.slices[name] for part in parts]) for name in first.slices},
        rows_without_digest=sum(part.rows_without_digest for part in parts),
        variants=_add_counts(part.variants for part in parts),
        labelled_variants=np.concatenate([part.labelled_variants for part in parts]),
        delays=np.concatenate([part.delays for part in parts]),
    )


def count_chunk(chunk: Chunk, bundle: Bundle, slices: Sequence[str], source: str, clock: str) -> Window:
    """Count one chunk in the bins of the bundle's reference."""
    answered = ~chunk.degraded
    labelled = answered & ~np.isnan(chunk.truth)
    variants = np.full(len(chunk.truth), "", dtype=object) if chunk.variants is None else chunk.variants
    delays = np.full(len(chunk.truth), np.nan) if chunk.delays is None else chunk.delays
    columns = {**chunk.columns, **bundle.drift_features(chunk.columns)}
    return Window(
        source=source,
        profile=profile.count(bundle.profile, columns, chunk.scores[answered].astype(np.float64)),
        rows=len(chunk.scores),
        degraded=int(chunk.degraded.sum()),
        versions=dict(Counter(chunk.versions.tolist())),
        out_of_range=_count_out_of_range(bundle.contract, chunk.columns),
        hours=_count_hours(chunk.times),
        first=_find_extreme(np.min, chunk.times),
        last=_find_extreme(np.max, chunk.times),
        clock=clock,
        output=chunk.output[labelled].astype(np.float32 if bundle.contract.classes else np.float64),
        truth=chunk.truth[labelled],
        slices={name: _name_values(chunk.columns[name][labelled]) for name in slices},
        rows_without_digest=chunk.rows_without_digest,
        variants={} if chunk.variants is None else dict(Counter(variants[answered].tolist())),
        labelled_variants=variants[labelled],
        delays=delays[labelled],
    )


def count_nothing(bundle: Bundle, slices: Sequence[str], source: str, clock: str) -> Window:
    """Return a window without rows."""
    return count_chunk(_empty_chunk(bundle.contract), bundle, slices, source, clock)


def collect(parts: Iterable[Window], bundle: Bundle, slices: Sequence[str], source: str, clock: str) -> Window:
    """Merge any number of windows, of which few are in memory at once."""
    waiting = [count_nothing(bundle, slices, source, clock)]
    for part in parts:
        waiting.append(part)
        if len(waiting) == _MAX_PARTS:
            waiting = [merge(waiting)]
    return merge(waiting)


def name_slices(contract: Contract, slices: Sequence[str]) -> list[str]:
    """Return those slices that are input columns, in the order of the contract."""
    return [column.name for column in contract.inputs if column.name in slices]


def _empty_chunk(contract: Contract) -> Chunk:
    none = np.empty(0)
    output = np.empty((0, len(contract.classes) or 3))
    return Chunk(
        columns_from_rows(contract.inputs, []),
        none,
        output,
        none,
        None,
        np.empty(0, dtype=object),
        np.empty(0, dtype=bool),
    )


def _count_out_of_range(contract: Contract, columns: Columns) -> dict[str, int]:
    found = {}
    for column in contract.inputs:
        for rule in build_rules(column):
            if rule.kind == "range" and (outside := int(IS_BROKEN[rule.kind](columns[column.name], rule.limit).sum())):
                found[column.name] = outside
    return found


def _count_hours(times: np.ndarray | None) -> dict[int, int]:
    if times is None:
        return {}
    hours, rows = np.unique(times[~np.isnat(times)].astype(np.int64) // _HOUR_US, return_counts=True)
    return dict(zip(hours.tolist(), rows.tolist(), strict=True))


def _find_extreme(of: Any, times: np.ndarray | None) -> datetime | None:
    if times is None or np.isnat(times).all():
        return None
    found: datetime = of(times[~np.isnat(times)]).item()
    return found


def _name_values(values: np.ndarray) -> np.ndarray:
    """Convert values to slice names as evaluation does; equal names share one str object."""
    if values.dtype.kind == "f":
        texts = np.where(np.isnan(values), MISSING_SLICE, np.where(values != 0, "true", "false"))
    else:
        missing = np.array([value is None for value in values], dtype=bool)
        texts = np.where(missing, MISSING_SLICE, values).astype(str)
    names, place = np.unique(texts, return_inverse=True)
    groups: np.ndarray = names.astype(object)[place]
    return groups


def _add_counts(counts: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
