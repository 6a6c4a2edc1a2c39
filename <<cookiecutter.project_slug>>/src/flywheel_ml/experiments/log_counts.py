"""Counts the rows of each variant in a span of the prediction log; the database counts, so memory stays constant."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from flywheel_ml.experiments.evidence import LATENCY_EDGES
from flywheel_ml.prediction_log import CHALLENGER, SHADOW, Prediction, Reader
from flywheel_ml.prediction_log.reader import MAX_VARIABLES
from flywheel_ml.prediction_log.rows import metric_values, predictions
from flywheel_ml.prediction_log.selection import may_have_arrived

CHAMPION = "champion"
FALLBACK = "fallback"
MIN_UNIQUE_SHARE = 0.99
"""With fewer different entities for each row, entities are counted instead of rows."""

_Where = Callable[[sa.FromClause], sa.ColumnElement[bool]]
_Assign = Callable[[sa.FromClause], sa.ColumnElement[str]]


class VariantCounts(NamedTuple):
    """Counts of one variant.

    Attributes:
        rows: that the variant was assigned; of entities with several rows, the number of entities.
        errors: those among them that it did not answer; of entities, the sum of the shares of their rows, rounded.
        latencies: requests per bin of `LATENCY_EDGES`, and one more; all rows of a request have its latency.
    """

    rows: int = 0
    errors: int = 0
    latencies: tuple[int, ...] = ()


class ExperimentReader(Reader):
    """Reads a log for experiments; rows outside of blocks only, because no row of an experiment is in a block."""

    def has_repeated_entities(self, since_us: int, until_us: int) -> bool:
        """Whether entities have several answered rows with since ≤ time < until; rows are then not independent.

        An entity may have one row in each of several files, so their different entities are then counted together.
        """

        def build_query(table: sa.FromClause) -> Any:
            of_entity = table.c.entity_id
            counts = sa.select(sa.func.count(of_entity), sa.func.count(of_entity.distinct()))
            return counts.where(_is_answered(table, since_us, until_us))

        found = [counts for counts in self._rows(predictions, build_query) if counts[0]]
        rows, entities = sum(one for one, _ in found), sum(one for _, one in found)
        if len(found) > 1 and entities >= MIN_UNIQUE_SHARE * rows:
            entities = self._count_different_entities(since_us, until_us)
        return bool(entities < MIN_UNIQUE_SHARE * rows)

    def count_variants(
        self, since_us: int, until_us: int, by_entity: bool, min_latency_us: int = 0, by_version: bool = False
    ) -> dict[str, VariantCounts]:
        """Count answered rows with since ≤ time < until: assigned variant → counts.

        A row that a fallback answered counts as the champion's, and as its error, unless it was assigned to another.

        Args:
            since_us, until_us: microseconds since 1970, UTC.
            by_entity: count entities instead of rows; from `has_repeated_entities`.
            min_latency_us: requests that are faster count as this fast.
            by_version: tell several challengers apart: `challenger:` and the version, as their failed rows are marked.
        """
        where = partial(_is_answered, since_us=since_us, until_us=until_us)
        assign = partial(_assigned, by_version=by_version)
        rows = self._count_entities(where, assign) if by_entity else self._count_rows(where, assign)
        latencies = self._count_latencies(where, assign, min_latency_us)
        return {variant: VariantCounts(*counts, latencies.get(variant, ())) for variant, counts in rows.items()}

    def count_shadow(self, since_us: int, until_us: int, model_digest: str) -> VariantCounts:
        """Count the rows of a shadow with since ≤ time < until; those that it failed on are degraded."""

        def build_query(table: sa.FromClause) -> Any:
            is_mine = sa.and_(table.c.variant == SHADOW, table.c.model_digest == model_digest)
            failed = sa.func.sum(sa.cast(table.c.degraded, sa.Integer))
            return sa.select(sa.func.count(), failed).where(_is_in_span(table, since_us, until_us), is_mine)

        found = list(self._rows(predictions, build_query))
        return VariantCounts(sum(rows for rows, _ in found), sum(int(failed or 0) for _, failed in found))

    def count_answers(
        self, since_us: int, until_us: int, origin_us: int, width_us: int
    ) -> dict[tuple[str, str, int], int]:
        """Count the rows that models answered as assigned: (variant, digest, widths since the origin) → rows."""

        def build_query(table: sa.FromClause) -> Any:
            part = ((table.c.timestamp_us - origin_us) // width_us).label("part")
            by = (table.c.variant, table.c.model_digest)
            is_mine = sa.and_(_is_answered(table, since_us, until_us), _has_failed(table) == 0)
            return sa.select(*by, part, sa.func.count()).where(is_mine).group_by(*by, sa.text("part"))

        found: Counter[tuple[str, str, int]] = Counter()
        for variant, digest, part, rows in self._rows(predictions, build_query):
            found[variant, digest or "", int(part)] += rows
        return found

    def read_values(self, metric: str, since_us: int, until_us: int) -> Iterator[tuple[Prediction, float]]:
        """Yield the rows that models answered as assigned, each with its value of a business metric."""

        def build_query(table: sa.FromClause) -> Any:
            is_asked = sa.and_(table.c.metric == metric, may_have_arrived(table, since_us))
            return sa.select(table.c.prediction_id, table.c.value).where(is_asked)

        values = self._rows(metric_values, build_query)
        while some := dict(itertools.islice(values, MAX_VARIABLES)):
            for row in self.find_all(list(some)):
                is_answered = row.variant != SHADOW and not row.degraded and row.assigned_variant is None
                if is_answered and since_us <= row.timestamp_us < until_us:
                    yield row, some[row.id]

    def _count_different_entities(self, since_us: int, until_us: int) -> int:
        def build_query(table: sa.FromClause) -> Any:
            entity = table.c.entity_id
            is_mine = sa.and_(_is_answered(table, since_us, until_us), entity.is_not(None))
            return sa.select(entity).distinct().where(is_mine)

        return len({hash(entity) for (entity,) in self._rows(predictions, build_query)})

    def _count_rows(self, where: _Where, assign: _Assign) -> dict[str, tuple[int, int]]:
        def build_query(table: sa.FromClause) -> Any:
            assigned = assign(table).label("assigned")
            query = sa.select(assigned, sa.func.count(), sa.func.sum(_has_failed(table))).where(where(table))
            return query.group_by(sa.text("assigned"))

        found: dict[str, tuple[int, int]] = {}
        for variant, rows, failed in self._rows(predictions, build_query):
            known = found.get(variant, (0, 0))
            found[variant] = known[0] + rows, known[1] + int(failed)
        return found

    def _count_entities(self, where: _Where, assign: _Assign) -> dict[str, tuple[int, int]]:
        """Count entities, and the share of each one's rows that failed: one failed row of many is not a failed entity.

        The files of a log share some entities, so each is remembered.
        """

        def build_query(table: sa.FromClause) -> Any:
            entity = sa.func.coalesce(table.c.entity_id, table.c.id).label("entity")
            counts = (sa.func.count(), sa.func.sum(_has_failed(table)))
            query = sa.select(assign(table).label("assigned"), entity, *counts).where(where(table))
            return query.group_by(sa.text("assigned"), sa.text("entity"))

        counted: dict[tuple[str, str], tuple[int, int]] = {}
        for variant, entity, rows, failed in self._rows(predictions, build_query):
            known = counted.get((variant, entity), (0, 0))
            counted[variant, entity] = known[0] + rows, known[1] + int(failed)
        entities, errors = Counter[str](), dict[str, float]()
        for (variant, _), (rows, failed) in counted.items():
            entities[variant] += 1
            errors[variant] = errors.get(variant, 0.0) + failed / rows
        return {variant: (count, round(errors[variant])) for variant, count in entities.items()}

    def _count_latencies(self, where: _Where, assign: _Assign, min_latency_us: int) -> dict[str, tuple[int, ...]]:
        def build_query(table: sa.FromClause) -> Any:
            # The rows of a request have one timestamp and one latency.
            assigned, latency = assign(table).label("assigned"), table.c.latency_us
            requests = sa.select(assigned, table.c.timestamp_us, latency).where(where(table)).distinct().subquery()
            at = _find_bin(requests.c.latency_us, LATENCY_EDGES, min_latency_us).label("bin")
            return sa.select(requests.c.assigned, at, sa.func.count()).group_by(requests.c.assigned, sa.text("bin"))

        found: dict[str, list[int]] = {}
        for variant, at, count in self._rows(predictions, build_query):
            found.setdefault(variant, [0] * (len(LATENCY_EDGES) + 1))[at] += count
        return {variant: tuple(counts) for variant, counts in found.items()}


def _is_in_span(table: sa.FromClause, since_us: int, until_us: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.timestamp_us >= since_us, table.c.timestamp_us < until_us)


def _is_answered(table: sa.FromClause, since_us: int, until_us: int) -> sa.ColumnElement[bool]:
    return sa.and_(_is_in_span(table, since_us, until_us), table.c.variant != SHADOW)


def _assigned(table: sa.FromClause, by_version: bool) -> sa.ColumnElement[str]:
    own: sa.ColumnElement[str] = table.c.variant
    if by_version:
        named = sa.literal(f"{CHALLENGER}:") + table.c.model_version
        own = sa.case((table.c.variant == CHALLENGER, named), else_=table.c.variant)
    answered = sa.case((table.c.variant == FALLBACK, CHAMPION), else_=own)
    return sa.func.coalesce(table.c.assigned_variant, answered)


def _has_failed(table: sa.FromClause) -> sa.ColumnElement[int]:
    return sa.case((sa.or_(table.c.assigned_variant.is_not(None), table.c.degraded), 1), else_=0)


def _find_bin(latency_us: sa.ColumnElement[int], edges: Sequence[float], floor_us: int) -> sa.ColumnElement[int]:
    floored = sa.case((latency_us < floor_us, floor_us), else_=latency_us)
    return sa.case(*((floored <= edge * 1e6, at) for at, edge in enumerate(edges)), else_=len(edges))
