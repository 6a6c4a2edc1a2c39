"""The rows to monitor: logged predictions of a period, or a scored file, counted chunk by chunk.

A window keeps counts, and single values of labelled rows only, so its size does not grow with unlabelled rows. Merging
windows is exact: parts of a fleet's log can be counted separately and merged.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core import profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract, columns_from_rows
from flywheel_ml.core.parsing.rules import IS_BROKEN, build_rules
from flywheel_ml.data import tables
from flywheel_ml.prediction_log import LoggedPrediction, Prediction, Reader
from flywheel_ml.utils.errors import DataError

CHUNK_ROWS = 20_000
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
        output, truth: float32 [n_labelled, k] and float64 [n_labelled], as in `metrics.compute_metrics`: the rows that
            the model scored and whose label is known.
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


def from_log(
    reader: Reader,
    bundle: Bundle,
    slices: Sequence[str] = (),
    since_us: int = 0,
    until_us: int | None = None,
    model_version: str | None = None,
    model_digest: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Window:
    """Count logged predictions with since ≤ time < until, of one model or of all.

    Args:
        reader: the log.
        bundle: the model whose reference defines the bins.
        slices: columns by whose values quality is reported.
        since_us, until_us: microseconds since 1970, UTC.
        model_version, model_digest: only predictions of this model, as in `Reader.predictions`.
        chunk_rows: rows held in memory at once.
    """
    logged = reader.predictions(since_us, until_us, model_version, model_digest=model_digest)
    chunks = iter(lambda: list(itertools.islice(logged, chunk_rows)), [])
    parts = (_read_logged(chunk, bundle) for chunk in chunks)
    return _collect(parts, bundle, slices, source="prediction log", clock="time of the prediction (UTC)")


def from_file(path: Path, bundle: Bundle, slices: Sequence[str] = (), chunk_rows: int = CHUNK_ROWS) -> Window:
    """Count a file that batch scoring wrote: the input columns, `score`, and the target column if labels are known.

    Raises:
        DataError: the file cannot be read, lacks a column, or has values of a different type than the contract says.
    """
    parts = (
        _read_scored(frame, bundle.contract, path) for frame in tables.read_chunks(path, bundle.contract, chunk_rows)
    )
    time = bundle.contract.time
    return _collect(parts, bundle, slices, source=f"scored file {path.name}", clock=time.name if time else "")


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


def count_chunk(
    chunk: Chunk, contract: Contract, reference: profile.Profile, slices: Sequence[str], source: str, clock: str
) -> Window:
    """Count one chunk."""
    answered = ~chunk.degraded
    labelled = answered & ~np.isnan(chunk.truth)
    variants = np.full(len(chunk.truth), "", dtype=object) if chunk.variants is None else chunk.variants
    delays = np.full(len(chunk.truth), np.nan) if chunk.delays is None else chunk.delays
    return Window(
        source=source,
        profile=profile.count(reference, chunk.columns, chunk.scores[answered].astype(np.float64)),
        rows=len(chunk.scores),
        degraded=int(chunk.degraded.sum()),
        versions=dict(Counter(chunk.versions.tolist())),
        out_of_range=_count_out_of_range(contract, chunk.columns),
        hours=_count_hours(chunk.times),
        first=_find_extreme(np.min, chunk.times),
        last=_find_extreme(np.max, chunk.times),
        clock=clock,
        output=chunk.output[labelled].astype(np.float32),
        truth=chunk.truth[labelled],
        slices={name: _name_slices(chunk.columns[name][labelled]) for name in slices},
        rows_without_digest=chunk.rows_without_digest,
        variants={} if chunk.variants is None else dict(Counter(variants[answered].tolist())),
        labelled_variants=variants[labelled],
        delays=delays[labelled],
    )


def _collect(chunks: Iterable[Chunk], bundle: Bundle, slices: Sequence[str], source: str, clock: str) -> Window:
    reference = bundle.profile
    slices = [column.name for column in bundle.contract.inputs if column.name in slices]
    parts = [
        count_chunk(
            _add_drift_features(_empty_chunk(bundle.contract), bundle),
            bundle.contract,
            reference,
            slices,
            source,
            clock,
        )
    ]
    for chunk in chunks:
        parts.append(count_chunk(_add_drift_features(chunk, bundle), bundle.contract, reference, slices, source, clock))
        if len(parts) == _MAX_PARTS:
            parts = [merge(parts)]
    return merge(parts)


def _add_drift_features(chunk: Chunk, bundle: Bundle) -> Chunk:
    return chunk._replace(columns={**chunk.columns, **bundle.drift_features(chunk.columns)})


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


def _read_logged(rows: Sequence[LoggedPrediction], bundle: Bundle) -> Chunk:
    predictions = [row.prediction for row in rows]
    return Chunk(
        columns=columns_from_rows(bundle.contract.inputs, [json.loads(p.inputs) for p in predictions]),
        scores=np.array([p.score for p in predictions], dtype=np.float32),
        output=_read_logged_output(rows, bundle.contract),
        truth=np.array([parse_label(row.label, bundle.contract) for row in rows], dtype=np.float64),
        times=np.array([p.timestamp_us for p in predictions], dtype="datetime64[us]"),
        versions=np.array([p.model_version for p in predictions], dtype=object),
        degraded=np.array([p.degraded for p in predictions], dtype=bool),
        rows_without_digest=sum(p.model_digest is None for p in predictions),
        variants=np.array([p.variant for p in predictions], dtype=object),
        delays=np.array([_compute_delay(row) for row in rows], dtype=np.float64),
    )


def _compute_delay(row: LoggedPrediction) -> float:
    """Return the seconds from a prediction to its label's arrival; NaN if it has not arrived or its time is unknown."""
    if row.label_row is None or row.label_row.arrived_us is None:
        return math.nan
    return (row.label_row.arrived_us - row.prediction.timestamp_us) / 1e6


def parse_label(text: str | None, contract: Contract) -> float:
    """Convert a label as `Contract.encode_target` does; NaN if it is absent or not a value of the target."""
    if text is None:
        return math.nan
    value = json.loads(text)
    if contract.classes:
        return float(contract.classes.index(value)) if value in contract.classes else math.nan
    return float(value) if isinstance(value, int | float) else math.nan


def parse_output(prediction: Prediction, contract: Contract) -> Sequence[float]:
    """Return the output [k] of a logged prediction, as in `metrics.compute_metrics`."""
    if contract.task == "binary":
        score = np.float32(prediction.score)
        return 1 - score, score
    answer = json.loads(prediction.output)
    if contract.classes:
        return list(answer["probabilities"].values())
    return [answer["prediction"], *answer["interval"]]


def _read_logged_output(rows: Sequence[LoggedPrediction], contract: Contract) -> np.ndarray:
    """Read the outputs [n_rows, k] of labelled rows; the others stay NaN."""
    output = np.full((len(rows), len(contract.classes) or 3), np.nan)
    for at, row in enumerate(rows):
        if row.label is not None:
            output[at] = parse_output(row.prediction, contract)
    return output


def _read_scored(frame: pl.DataFrame, contract: Contract, path: Path) -> Chunk:
    target = contract.target
    has_labels = target.name in frame.columns
    wanted = (*contract.inputs, target) if has_labels else contract.inputs
    if absent := [name for name in (*(c.name for c in contract.inputs), "score") if name not in frame.columns]:
        raise DataError(
            f"{path} has no column '{absent[0]}'; give a file that batch scoring wrote, with its input columns"
        )
    frame = frame.with_columns(
        pl.col(c.name).cast(tables.DTYPES[c.type]) for c in wanted if frame.schema[c.name] == pl.Null()
    )
    for column in wanted:
        found = frame.schema[column.name]
        if found != tables.DTYPES[column.type]:
            raise DataError(
                f"{path}: column '{column.name}' is {found} where the contract says {column.type}; score it again"
            )
    scores = frame["score"].cast(pl.Float32, strict=False)
    if contract.classes and not scores.is_between(0, 1).fill_null(value=False).all():
        raise DataError(f"{path}: column 'score' has values outside [0, 1]; score the table again")
    columns = tables.to_columns(frame, wanted)
    rows = frame.height
    return Chunk(
        columns={column.name: columns[column.name] for column in contract.inputs},
        scores=scores.to_numpy(),
        output=_read_scored_output(frame, contract, path)
        if has_labels
        else np.empty((rows, len(contract.classes) or 3)),
        truth=contract.encode_target(columns[target.name]) if has_labels else np.full(rows, np.nan),
        times=columns[contract.time.name] if contract.time else None,
        versions=_read_texts(frame, "model_version"),
        degraded=np.zeros(rows, dtype=bool),
    )


def _read_scored_output(frame: pl.DataFrame, contract: Contract, path: Path) -> np.ndarray:
    """Convert the columns that `flows/scoring.py` wrote to outputs [n_rows, k]."""
    wanted = {"binary": ["score"], "multiclass": ["probabilities"], "regression": ["prediction", "low", "high"]}
    if absent := [name for name in wanted[contract.task] if name not in frame.columns]:
        raise DataError(f"{path} has no column '{absent[0]}', which batch scoring adds; score the table again")
    output: np.ndarray
    if contract.task == "multiclass":
        output = np.array(frame["probabilities"].to_list(), dtype=np.float32).reshape(frame.height, -1)
        if output.shape[1] != len(contract.classes):
            raise DataError(f"{path}: column 'probabilities' does not have one number per class; score the table again")
        return output
    output = frame.select(pl.col(wanted[contract.task]).cast(pl.Float32)).to_numpy()
    return np.concatenate((1 - output, output), axis=1) if contract.task == "binary" else output


def _read_texts(frame: pl.DataFrame, name: str) -> np.ndarray:
    texts: np.ndarray = (
        frame[name].cast(pl.String).fill_null("unknown").to_numpy()
        if name in frame.columns
        else np.full(frame.height, "unknown", dtype=object)
    )
    return texts


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


def _name_slices(values: np.ndarray) -> np.ndarray:
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
