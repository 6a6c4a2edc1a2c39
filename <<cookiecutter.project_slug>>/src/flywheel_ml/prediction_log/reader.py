"""Reads all files of a log, or its database, as one log."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa

from flywheel_ml.prediction_log.database_engine import check_version, create_engine, translate_errors
from flywheel_ml.prediction_log.labels import join
from flywheel_ml.prediction_log.migrations import select_as_current
from flywheel_ml.prediction_log.rows import (
    BLOCK_DIGITS,
    SCHEMA_VERSION,
    Block,
    EntityOutcome,
    Job,
    MetricValue,
    Outcome,
    Prediction,
    block_row_id,
    blocks,
    entity_labels,
    jobs,
    labels,
    metric_values,
    predictions,
)
from flywheel_ml.prediction_log.selection import ALL_VARIANTS, Selection, may_have_arrived, select_hours
from flywheel_ml.prediction_log.variant_stats import VariantStats, merge_stats, select_stats
from flywheel_ml.utils.errors import ConfigError

MAX_VARIABLES = 10_000
"""Most ids in one query; SQLite accepts 32,766 at most."""

MAX_LOOKED_UP_SHARE = 0.2
"""With more labels for each row of a span, reading the span is faster than looking up labelled rows."""

_IN_BLOCK = re.compile(r"[0-9a-f]{32}")
_READ_ONLY = {"mode": "ro", "uri": "true"}


class LoggedPrediction(NamedTuple):
    """A prediction from the log, with its label (a JSON text) if one has arrived.

    `label_row` is the row of the label: an `Outcome` if it was sent for the prediction's id, an `EntityOutcome` if it
    was joined by entity and time (`labels/join.py`).
    """

    prediction: Prediction
    label: str | None
    label_row: Outcome | EntityOutcome | None = None


class Reader:
    """Reads a whole log; the files of a folder appear as one. Never writes.

    Args:
        target: a folder, or a database URL.
        keep_open: whether to keep database connections between queries, until `close`.
        label_horizon_us: how much later than a prediction a label of its entity may be, to be joined; None: any time.

    Raises:
        ConfigError: a file was written by a newer version of this package.
    """

    def __init__(self, target: str, keep_open: bool = False, label_horizon_us: int | None = None) -> None:
        self._target = target
        self._label_horizon_us = label_horizon_us
        self._engine = create_engine(target, pings=True) if keep_open and "://" in target else None
        self._engine_version = 0

    def close(self) -> None:
        """Close the connections that were kept open."""
        if self._engine is not None:
            self._engine.dispose()

    def predictions(
        self,
        since_us: int = 0,
        until_us: int | None = None,
        model_version: str | None = None,
        variant: str | None = None,
        model_digest: str | None = None,
    ) -> Iterator[LoggedPrediction]:
        """Yield predictions with since ≤ time < until, in the order of each file, joined with their labels.

        A digest selects the predictions of one model. Rows logged before schema 3 have no digest; their version
        decides. Predictions of a shadow are omitted unless `variant` asks for them. The rows of blocks come last.
        Labels may be in another file, so the reader looks them up in batches and memory stays flat.

        Raises:
            ConfigError: the log holds Arrow blocks and pyarrow is not installed.
        """
        selected = Selection(since_us, until_us, model_version, model_digest, variant)
        return self._join_labels(self._select(selected))

    def labelled(
        self,
        since_us: int = 0,
        until_us: int | None = None,
        model_version: str | None = None,
        model_digest: str | None = None,
        variant: str | None = None,
    ) -> Iterator[LoggedPrediction]:
        """Yield the predictions of one model that have a label, as `predictions` does.

        With few labels, the reader looks up their predictions. Otherwise, or with labels of entities, which no index
        of the predictions has, it reads all predictions of the span.
        """
        selected = Selection(since_us, until_us, model_version, model_digest, variant)
        count = self.count_labels(since_us)
        has_entity_labels = self._count(entity_labels, lambda table: table.c.timestamp_us >= since_us) > 0
        if not count and not has_entity_labels:
            return
        if has_entity_labels or count > MAX_LOOKED_UP_SHARE * sum(self.count_hours(since_us, until_us).values()):
            found = self._join_labels(self._select(selected))
            yield from (one for one in found if one.label is not None)
            return
        names = self._rows(
            labels, lambda table: sa.select(table.c.prediction_id).where(may_have_arrived(table, since_us))
        )
        while some := [name for (name,) in itertools.islice(names, MAX_VARIABLES)]:
            yield from self._join_labels(self._find_selected(some, selected))

    def unlabelled(self, since_us: int = 0, until_us: int | None = None) -> Iterator[Prediction]:
        """Yield the predictions of all models and variants, shadows included, without their labels."""
        return self._select(Selection(since_us, until_us, variant=ALL_VARIANTS))

    def count_hours(self, since_us: int = 0, until_us: int | None = None) -> dict[int, int]:
        """Count predictions of all models and variants: hour since 1970 → rows, in every hour that the span touches.

        This reads an index, not the rows.
        """
        found: Counter[int] = Counter()
        span = Selection(since_us, until_us, variant=ALL_VARIANTS)
        for table in (predictions, blocks):
            for hour, rows in self._rows(table, partial(select_hours, span)):
                found[hour] += int(rows or 0)
        return {hour: rows for hour, rows in sorted(found.items()) if rows}

    def count_labels(self, since_us: int = 0) -> int:
        """Count the labels of predictions that may have arrived at or after a time; not those of entities."""
        return self._count(labels, lambda table: may_have_arrived(table, since_us))

    def _count(
        self, table: sa.Table, where: Callable[[sa.FromClause], sa.ColumnElement[bool]] = lambda _: sa.true()
    ) -> int:
        query = sa.select(sa.func.count())
        return sum(rows for (rows,) in self._rows(table, lambda found: query.select_from(found).where(where(found))))

    def _select(self, selection: "Selection") -> Iterator[Prediction]:
        of_blocks = (one for row in self._rows(blocks, selection.build_query) for one in unpack_block(Block._make(row)))
        return itertools.chain(map(Prediction._make, self._rows(predictions, selection.build_query)), of_blocks)

    def _join_labels(self, found: Iterator[Prediction]) -> Iterator[LoggedPrediction]:
        has_entity_labels = self._count(entity_labels) > 0
        while some := list(itertools.islice(found, MAX_VARIABLES)):
            yield from self._join_some(some, has_entity_labels)

    def _join_some(self, some: Sequence[Prediction], has_entity_labels: bool) -> Iterator[LoggedPrediction]:
        by_id = {
            row.prediction_id: row
            for row in map(Outcome._make, self._select_by_key(labels, "prediction_id", [one.id for one in some]))
        }
        entities = {one.entity_id for one in some if one.entity_id is not None and one.id not in by_id}
        known = sorted(entities) if has_entity_labels else []
        by_entity = join.group_by_entity(self.entity_labels(known, min(one.timestamp_us for one in some)))
        for prediction in some:
            row = join.find_label(prediction, by_id, by_entity, self._label_horizon_us)
            yield LoggedPrediction(prediction, None if row is None else row.label, row)

    def entity_labels(self, entities: Sequence[str], since_us: int | None = None) -> list[EntityOutcome]:
        """Return the labels of entities, from a timestamp on; of several files, in no order."""

        def build_query(some: Sequence[str], table: sa.FromClause) -> sa.Select[Any]:
            query = sa.select(table).where(table.c.entity_id.in_(some))
            return query if since_us is None else query.where(table.c.timestamp_us >= since_us)

        return [
            EntityOutcome._make(row)
            for some in _split_ids(entities)
            for row in self._rows(entity_labels, partial(build_query, some))
        ]

    def has_any_entity(self, entities: Collection[str]) -> bool:
        """Whether any prediction in the log is about one of these entities; reads the log until it finds one."""
        wanted = set(entities)

        def build_query(some: Sequence[str], table: sa.FromClause) -> sa.Select[Any]:
            return sa.select(sa.literal(1)).where(table.c.entity_id.in_(some)).limit(1)

        if any(next(self._rows(predictions, partial(build_query, some)), None) for some in _split_ids(sorted(wanted))):
            return True
        packed = self._rows(blocks, lambda table: sa.select(table).where(table.c.entity_column.is_not(None)))
        return any(one.entity_id in wanted for row in packed for one in unpack_block(Block._make(row)))

    def _find_selected(self, ids: Sequence[str], selection: "Selection") -> Iterator[Prediction]:
        """Find the selected ones of these predictions."""
        yield from map(
            Prediction._make,
            self._rows(predictions, lambda table: selection.build_query(table).where(table.c.id.in_(ids))),
        )
        wanted = {one for one in ids if _IN_BLOCK.fullmatch(one)}
        first = sorted({block_row_id(one, 0) for one in wanted})
        for row in self._rows(blocks, lambda table: selection.build_query(table).where(table.c.id.in_(first))):
            yield from (one for one in unpack_block(Block._make(row)) if one.id in wanted)

    def compute_stats(self, since_us: int = 0, until_us: int | None = None) -> list[VariantStats]:
        """Return statistics by variant, version and digest for since ≤ time < until, shadows included."""
        found: dict[tuple[str, str, str], list[VariantStats]] = {}
        for table in (predictions, blocks):
            for variant, version, digest, rows, *sums in self._rows(table, partial(select_stats, since_us, until_us)):
                degraded, score, latency, last = sums
                mean = math.nan if score is None else float(score)
                model = (variant, version, digest)
                part = VariantStats(*model, int(rows), int(degraded), mean, float(latency) / int(rows), last)
                found.setdefault((variant, version, digest or ""), []).append(part)
        return [merge_stats(found[key]) for key in sorted(found)]

    def labels(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Return prediction id → label (a JSON text), of all predictions or of the given ids."""
        if ids is None:
            return dict(self._rows(labels, lambda table: sa.select(table.c.prediction_id, table.c.label)))
        return dict(
            row
            for some in _split_ids(ids)
            for row in self._select_by_key(labels, "prediction_id", some, ("prediction_id", "label"))
        )

    def metric_values(self, ids: Sequence[str], metric: str | None = None) -> list[MetricValue]:
        """Return the values of business metrics, or of one, that are stored for these predictions."""
        found = (
            MetricValue._make(row)
            for some in _split_ids(ids)
            for row in self._select_by_key(metric_values, "prediction_id", some)
        )
        return [one for one in found if metric in (None, one.metric)]

    def count_metrics(self) -> dict[str, int]:
        """Count the values of each business metric."""
        found: Counter[str] = Counter()
        for name, count in self._rows(
            metric_values, lambda table: sa.select(table.c.metric, sa.func.count()).group_by(table.c.metric)
        ):
            found[name] += count
        return dict(sorted(found.items()))

    def find_known(self, ids: Sequence[str]) -> set[str]:
        """Return those ids that are predictions in the log."""
        found = {one for some in _split_ids(ids) for (one,) in self._select_by_key(predictions, "id", some, ("id",))}
        return found | self._find_in_blocks([one for one in ids if one not in found and _IN_BLOCK.fullmatch(one)])

    def find(self, name: str) -> Prediction | None:
        """Return the prediction with this id, also a shadow's, or None. Raises as `predictions`."""
        found = list(self._select_by_key(predictions, "id", [name]))
        if found or not self._find_in_blocks([name] if _IN_BLOCK.fullmatch(name) else []):
            return Prediction._make(found[0]) if found else None
        (block,) = self._select_by_key(blocks, "id", [block_row_id(name, 0)])
        return next(row for row in unpack_block(Block._make(block)) if row.id == name)

    def find_all(self, ids: Sequence[str]) -> Iterator[Prediction]:
        """Yield the predictions outside of blocks with these ids, also a shadow's."""
        for some in _split_ids(ids):
            yield from map(Prediction._make, self._select_by_key(predictions, "id", some))

    def _find_in_blocks(self, ids: Sequence[str]) -> set[str]:
        first = {one: block_row_id(one, 0) for one in ids}
        chunks = _split_ids(sorted(set(first.values())))
        sizes = {
            found: rows for some in chunks for found, rows in self._select_by_key(blocks, "id", some, ("id", "rows"))
        }
        return {one for one in ids if int(one[-BLOCK_DIGITS:], 16) < sizes.get(first[one], 0)}

    def jobs(self) -> list[Job]:
        """Return all batch jobs, oldest first."""
        return sorted((Job._make(row) for row in self._rows(jobs, sa.select)), key=lambda job: job.timestamp_us)

    def refers_to(self, model_version: str, model_digest: str) -> bool:
        """Whether any row names a model by its digest or, if logged before schema 3, by its version."""

        def build_query(table: sa.FromClause) -> sa.Select[Any]:
            older = sa.and_(table.c.model_digest.is_(None), table.c.model_version == model_version)
            return sa.select(sa.literal(1)).where(sa.or_(table.c.model_digest == model_digest, older)).limit(1)

        return any(next(self._rows(table, build_query), None) for table in (predictions, blocks, jobs))

    def _select_by_key(
        self, table: sa.Table, key: str, values: Sequence[str], names: Sequence[str] | None = None
    ) -> Iterator[Any]:
        """Select rows, or some of their columns, whose key is one of the values."""
        names = names or [column.name for column in table.columns]
        return self._rows(table, lambda found: sa.select(*(found.c[n] for n in names)).where(found.c[key].in_(values)))

    def _rows(self, table: sa.Table, query: Callable[[sa.FromClause], sa.Select[Any]]) -> Iterator[Any]:
        for engine in self._engines():
            try:
                with translate_errors(engine), engine.connect() as connection:
                    if engine.dialect.name == "sqlite":  # Prevents a migration between two queries.
                        connection.exec_driver_sql("BEGIN")
                    if (found := select_as_current(self._version(connection), table)) is not None:
                        with connection.execution_options(yield_per=5000).execute(query(found)) as rows:
                            yield from rows
            finally:
                if engine is not self._engine:
                    engine.dispose()

    def _version(self, connection: sa.Connection) -> int:
        if self._engine is None:
            return check_version(connection)
        if self._engine_version < SCHEMA_VERSION:
            self._engine_version = check_version(connection)
        return self._engine_version

    def _engines(self) -> Iterator[sa.Engine]:
        if self._engine is not None:
            yield self._engine
            return
        urls: list[str | sa.URL] = [self._target]
        if "://" not in self._target:
            paths = sorted(Path(self._target).glob("*.db"))
            urls = [sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query=_READ_ONLY) for path in paths]
        yield from map(create_engine, urls)


def unpack_block(block: Block) -> Iterator[Prediction]:
    """Yield the predictions of a block; raises `ConfigError` if it is in Arrow and pyarrow is not installed."""
    from flywheel_ml.prediction_log.blocks import unpack

    try:
        columns = (block.entity_column, block.event_timestamp_column)
        for at, row in enumerate(unpack(block.inputs, block.outputs, *columns)):
            yield Prediction(
                block_row_id(block.id, at),
                block.timestamp_us,
                row.entity_id,
                row.event_timestamp_us,
                block.variant,
                block.model_version,
                block.model_digest,
                row.inputs,
                row.output,
                row.score,
                block.latency_us,
                block.degraded,
                block.assigned_variant,
            )
    except ImportError:
        raise ConfigError(
            "the prediction log holds Arrow blocks, but pyarrow is not installed; install the extra 'arrow'"
        ) from None


def _split_ids(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[at : at + MAX_VARIABLES] for at in range(0, len(ids), MAX_VARIABLES))
