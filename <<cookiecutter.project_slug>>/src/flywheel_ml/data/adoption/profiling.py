"""Profiles a table in one pass of bounded memory: how each column is parsed, and exact counts of its rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core.parsing.series import clean_texts
from flywheel_ml.data.adoption import name_heuristics
from flywheel_ml.data.adoption.detection import texts
from flywheel_ml.data.adoption.detection.detected import TEXT, TOLERANCE, Detected, Hints, read_columns
from flywheel_ml.data.adoption.detection.guess import guess_column, guess_table
from flywheel_ml.data.formats.reading import OpenTable
from flywheel_ml.data.formats.repairs import Repair
from flywheel_ml.utils.errors import DataError

BATCH_ROWS = 200_000
HEAD_ROWS, HEAD_CELLS = 20_000, 2_000_000
SAMPLE_ROWS = 200_000
SAMPLE_CELLS = 20_000_000
MAX_COUNTED_VALUES = 1000
"""Up to this number of distinct values, each one is counted."""
MAX_MISFITS = 100
"""Number of unparseable cells that a column keeps as examples."""
_MAX_MARKERS = 20
_SKETCH = 4096
_HASHES = float(2**64)


class ColumnProfile(NamedTuple):
    """Profile of a column: counts are exact, except `distinct` beyond 4,096, which is within a few percent.

    `values` counts each value where there are at most `MAX_COUNTED_VALUES`, else it is None. `misfits` are cells that
    held something which could not be read, `examples` the first of them. `markers` are the texts that were read as
    missing, each with its cells. `backwards` counts timestamps earlier than that of the row before.
    """

    name: str
    parse: Detected
    missing: int
    misfits: int
    examples: tuple[str, ...]
    minimum: Any
    maximum: Any
    distinct: int
    unique: bool
    values: dict[Any, int] | None
    backwards: int
    markers: dict[str, int] = {}  # noqa: RUF012 # Never written to.


class TableProfile(NamedTuple):
    """Profile of a table: its columns, a sample of up to `SAMPLE_ROWS` rows in contract types, and dropped columns.

    `repeated` is the number of rows that equal an earlier row in all columns.
    """

    name: str
    rows: int
    columns: dict[str, ColumnProfile]
    sample: pl.DataFrame
    repeated: int
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repairs: tuple[Repair, ...] = ()


def profile_table(table: OpenTable, target: str, keep_na: Sequence[str] = ()) -> TableProfile:
    """Read every row once, and twice for columns whose first rows misled; the target's yes and no stay texts.

    In the columns `keep_na` the text NA is a value.

    Raises:
        DataError: the table has no rows, or one column only.
    """
    head = table.rows.head(max(MAX_COUNTED_VALUES, min(HEAD_ROWS, HEAD_CELLS // len(table.columns)))).collect()
    if head.is_empty():
        raise DataError(f"{table.name} has no rows, only a header; there is nothing to learn from")
    if len(table.columns) < 2:
        raise DataError(
            f"{table.name} has one column only ('{table.columns[0]}'); a target needs columns to learn it from"
        )
    named = dict(zip(map(str, range(len(table.columns))), table.columns, strict=True))
    hints = Hints(table.semicolons, target=target, quoted=table.quoted, keep_na=keep_na)
    plan, hints = guess_table(head.rename(named), hints)
    parses = {at: parse for at, name in named.items() if (parse := plan[name]) is not None}
    counted = _count(table.rows, parses)
    columns = dict(counted.columns)
    changed = {
        at: better
        for at, name in named.items()
        if at in columns and (better := _find_better_reading(columns[at], counted, name, hints)) is not None
    }
    unread = dict(counted.unread)
    if changed:
        again = _count(table.rows.select(list(changed)), changed)
        columns |= again.columns
        unread |= again.unread
        parses |= changed
    columns = {at: _mark_misfits_missing(column, named[at], unread[at]) for at, column in columns.items()}
    sample = read_columns(counted.sample, parses)[0].rename({at: named[at] for at in parses})
    return TableProfile(
        table.name,
        counted.rows,
        {named[at]: columns[at]._replace(name=named[at]) for at in parses},
        sample,
        counted.repeated,
        tuple(name for at, name in named.items() if at not in parses),
        table.notes,
        table.repairs,
    )


class _CountResult(NamedTuple):
    rows: int
    columns: dict[str, ColumnProfile]
    sample: pl.DataFrame
    repeated: int
    unread: dict[str, pl.Series]


def _find_better_reading(column: ColumnProfile, counted: _CountResult, name: str, hints: Hints) -> Detected | None:
    """Find a better way to parse a column of texts if later rows show the need."""
    cells = counted.sample[column.name].rename(name)
    is_text = column.parse.is_text and column.distinct > 0
    if (
        cells.dtype != pl.String
        or not (is_text or column.misfits or column.parse.time_zone)
        or counted.rows <= MAX_COUNTED_VALUES
    ):
        return None
    held = cells.drop_nulls()
    some = held.sample(min(len(held), HEAD_ROWS), seed=0)
    # In proportion: few misfits must not outweigh the sample.
    unread = counted.unread[column.name].head(max(1, round(len(some) * TOLERANCE / 2))).rename(name)
    gaps = pl.Series(name, [None] if column.missing else [], dtype=pl.String)
    # Summer time begins and ends in few rows: its time zone is found in all of them.
    better = guess_column(cells if column.parse.time_zone else pl.concat([some, unread, gaps]), hints) or TEXT
    if better.is_text:
        counts = pl.Series(name, list(column.values or ()) if column.parse.type == "string" else [], dtype=pl.String)
        better = texts.detect(pl.concat([cells, counts]), hints)
    if not better.reads_like(column.parse):
        return better
    present = counted.rows - column.missing + column.misfits
    return TEXT if column.misfits > TOLERANCE * present else None


def _mark_misfits_missing(column: ColumnProfile, name: str, unread: pl.Series) -> ColumnProfile:
    """Add the few unparseable texts to the column's missing values, so that other files treat them alike."""
    if unread.is_empty() or column.misfits > MAX_MISFITS or name_heuristics.is_personal(name):
        return column
    return column._replace(parse=column.parse.with_missing(clean_texts(unread).unique(maintain_order=True)))


def _count(rows: pl.LazyFrame, parses: dict[str, Detected]) -> _CountResult:
    schema = rows.collect_schema()
    counts = [_ColumnCounter(at, parse) for at, parse in parses.items()]
    sampler = _Sampler(min(SAMPLE_ROWS, SAMPLE_CELLS // len(schema)))
    rows_seen, hashes = 0, list[pl.Series]()
    for batch in _read_batches(rows):
        values, wrong = read_columns(batch, parses)
        totals = _compute_totals(values, counts)
        # Frame by frame, not column by column: a table may have ten thousand columns. Distinct values are counted only
        # while they may still be few, because that costs more than all the rest.
        few = [count.at for count in counts if count.is_few]
        counted = values.select(pl.col(few).drop_nulls().value_counts(name="rows").implode())
        hashed = values.select(pl.col([count.at for count in counts if not count.is_few]).hash(0))
        for count in counts:
            count.add(batch[count.at], values[count.at], wrong.get(count.at), totals)
            if count.is_few:
                count.add_values(*counted[count.at][0].struct.unnest().get_columns())
            else:
                count.add_hashes(hashed[count.at].filter(values[count.at].is_not_null()))
        rows_seen += batch.height
        hashes.append(values.hash_rows())
        sampler.add(batch)
    return _CountResult(
        rows_seen,
        {count.at: count.result(rows_seen) for count in counts},
        sampler.rows(),
        rows_seen - len(_drop_duplicates(pl.concat(hashes).to_numpy())),
        {count.at: count.unread for count in counts},
    )


def _read_batches(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    for batch in rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        yield from batch.iter_slices(BATCH_ROWS)


def _compute_totals(values: pl.DataFrame, counts: "list[_ColumnCounter]") -> dict[str, Any]:
    wanted = []
    for count in counts:
        value = pl.col(f"{count.at}")
        wanted.append(value.null_count().alias(f"missing {count.at}"))
        if count.parse.type != "string":
            wanted += [value.min().alias(f"minimum {count.at}"), value.max().alias(f"maximum {count.at}")]
        if count.parse.type == "datetime":
            wanted.append((value.diff() < pl.duration()).sum().alias(f"backwards {count.at}"))
    return values.select(wanted).row(0, named=True)


class _ColumnCounter:
    """Running counts of one column."""

    def __init__(self, at: str, parse: Detected) -> None:
        self.at, self.parse = at, parse
        self.markers: Counter[str] = Counter()
        self.unread = pl.Series(at, [], dtype=pl.String)
        self._missing = self._misfits = self._backwards = 0
        self._ends: list[Any] = []
        self._values: Counter[Any] | None = Counter()
        self._sketch = np.empty(0, dtype=np.uint64)
        self._distinct: list[pl.Series] | None = [] if parse.type in ("string", "integer") else None

    @property
    def is_few(self) -> bool:
        """Whether each value is counted, as there are not too many of them so far."""
        return self._values is not None

    def add(self, cells: pl.Series, values: pl.Series, wrong: pl.Series | None, totals: dict[str, Any]) -> None:
        """Count what is missing, what cannot be read, and the ends, of a batch."""
        missing = totals[f"missing {self.at}"]
        self._missing += missing
        self._backwards += totals.get(f"backwards {self.at}") or 0
        self._ends += [end for side in ("minimum", "maximum") if (end := totals.get(f"{side} {self.at}")) is not None]
        if wrong is not None and self.parse.type != "string":
            self._misfits += int(wrong.sum())
            odd = cells.filter(wrong).head(MAX_MISFITS - len(self.unread))
            self.unread = self.unread.extend(odd.cast(pl.String).alias(self.at))
        if missing > cells.null_count():
            gone = cells.filter(values.is_null() & cells.is_not_null() & (~wrong if wrong is not None else True))
            if gone.dtype == pl.String:
                counts = clean_texts(gone).value_counts(sort=True).head(_MAX_MARKERS)
                self.markers.update({text: rows for text, rows in counts.iter_rows() if text})
            elif infinite := int(gone.is_infinite().sum()) if gone.dtype.is_float() else 0:
                self.markers["inf"] += infinite

    def add_values(self, values: pl.Series, rows: pl.Series) -> None:
        """Count the distinct values of a batch, each with its rows; once there are too many, only their hashes."""
        assert self._values is not None
        if self._distinct is not None:
            self._distinct = [*self._distinct, values.hash(0)] if len(values) == rows.sum() else None
        if len(values) <= MAX_COUNTED_VALUES:
            self._values.update(dict(zip(values, rows, strict=True)))
        if max(len(values), len(self._values)) > MAX_COUNTED_VALUES:
            self._add_to_sketch(values.hash(0))
            self._add_to_sketch(pl.Series(list(self._values), dtype=values.dtype).hash(0))
            self._values = None

    def add_hashes(self, hashes: pl.Series) -> None:
        """Count the values of a batch by their hashes."""
        if self._distinct is not None:
            # An id never repeats a value, so most columns are ruled out after one batch.
            self._distinct = [*self._distinct, hashes] if _are_distinct(hashes) else None
        self._add_to_sketch(hashes)

    def _add_to_sketch(self, hashes: pl.Series) -> None:
        lowest = hashes.to_numpy()
        if len(self._sketch) == _SKETCH:
            lowest = lowest[lowest < self._sketch[-1]]
        self._sketch = _drop_duplicates(np.concatenate([self._sketch, lowest]))[:_SKETCH]

    def result(self, rows: int) -> ColumnProfile:
        unique = self._distinct is not None and rows == self._missing + sum(map(len, self._distinct))
        if unique and self._distinct:
            unique = _are_distinct(pl.concat(self._distinct))
        distinct = len(self._sketch)
        if distinct == _SKETCH:
            # The k smallest of n hashes spread evenly tell n (Bar-Yossef et al., 2002).
            estimate = round((_SKETCH - 1) / (float(self._sketch[-1]) / _HASHES))
            distinct = min(estimate, rows - self._missing)
        return ColumnProfile(
            self.at,
            self.parse,
            self._missing,
            self._misfits,
            tuple(self.unread.head(3)),
            min(self._ends, default=None),
            max(self._ends, default=None),
            distinct if self._values is None else len(self._values),
            unique,
            dict(self._values) if self._values is not None else None,
            self._backwards,
            dict(self.markers),
        )


def _drop_duplicates(hashes: np.ndarray) -> np.ndarray:
    # Sorting 64-bit numbers is several times as quick as a hash table of them.
    ordered = np.sort(hashes)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _are_distinct(hashes: pl.Series) -> bool:
    return len(_drop_duplicates(hashes.to_numpy())) == len(hashes)


class _Sampler:
    """Up to `limit` rows, each as likely as any other, in order; the same ones every time."""

    def __init__(self, limit: int) -> None:
        self._limit, self._share, self._rng = limit, 1.0, np.random.default_rng(0)
        self._kept: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, batch: pl.DataFrame) -> None:
        self._keep(batch, self._share)
        while self._rows > 2 * self._limit:
            self._thin(0.5)
            self._share /= 2

    def rows(self) -> pl.DataFrame:
        if self._rows > self._limit:
            self._thin(self._limit / self._rows)
        return pl.concat(self._kept)

    def _thin(self, share: float) -> None:
        whole, self._kept, self._rows = self._kept, [], 0
        for frame in whole:
            self._keep(frame, share)

    def _keep(self, frame: pl.DataFrame, share: float) -> None:
        kept = frame if share >= 1 else frame.filter(pl.Series(self._rng.random(frame.height) < share))
        self._kept.append(kept)
        self._rows += kept.height
