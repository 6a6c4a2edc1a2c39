"""Queries that select rows of the log."""

from typing import Any, NamedTuple

import sqlalchemy as sa

from flywheel_ml.prediction_log.rows import SHADOW

ALL_VARIANTS = "*"
HOUR_US = 3_600_000_000


class Selection(NamedTuple):
    """Which predictions to read; the fields are the arguments of `Reader.predictions`."""

    since_us: int = 0
    until_us: int | None = None
    model_version: str | None = None
    model_digest: str | None = None
    variant: str | None = None

    def build_query(self, table: sa.FromClause) -> sa.Select[Any]:
        """Select the rows of a table, in the order of their ids."""
        query = sa.select(table).where(self.is_in_span(table)).order_by(table.c.id)
        of_version = sa.true() if self.model_version is None else table.c.model_version == self.model_version
        if self.model_digest is not None:
            digest = table.c.model_digest
            of_version = sa.or_(digest == self.model_digest, sa.and_(digest.is_(None), of_version))
        query = query.where(of_version)
        if self.variant == ALL_VARIANTS:
            return query
        return query.where(table.c.variant != SHADOW if self.variant is None else table.c.variant == self.variant)

    def is_in_span(self, table: sa.FromClause) -> sa.ColumnElement[bool]:
        """Select since ≤ time < until."""
        after = table.c.timestamp_us >= self.since_us
        return after if self.until_us is None else sa.and_(after, table.c.timestamp_us < self.until_us)


def may_have_arrived(table: sa.FromClause, since_us: int) -> sa.ColumnElement[bool]:
    """Select the labels that arrived at or after a time, and those of schemas 1 to 3, whose arrival is unknown."""
    return sa.true() if since_us == 0 else sa.or_(table.c.arrived_us.is_(None), table.c.arrived_us >= since_us)


def select_hours(span: Selection, table: sa.FromClause) -> sa.Select[Any]:
    """Count each hour by a range of the index: a fifth of the time of a GROUP BY, which sorts all rows."""
    time = table.c.timestamp_us
    first, last = (
        sa.select(of(time)).where(span.is_in_span(table)).scalar_subquery() for of in (sa.func.min, sa.func.max)
    )
    start = sa.select((first // HOUR_US).label("hour")).where(first.is_not(None)).cte("hours", recursive=True)
    hours = start.union_all(sa.select(start.c.hour + 1).where(start.c.hour < last // HOUR_US))
    rows = sa.func.sum(table.c.rows) if "rows" in table.c else sa.func.count()
    begin = hours.c.hour * HOUR_US
    of_hour = sa.select(rows).select_from(table).where(time >= begin, time < begin + HOUR_US)
    return sa.select(hours.c.hour, of_hour.correlate(hours).scalar_subquery())
