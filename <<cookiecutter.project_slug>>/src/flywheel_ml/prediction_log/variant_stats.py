"""Statistics of the models and variants in a log."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa


class VariantStats(NamedTuple):
    """Statistics of one model in one variant. `mean_score` covers rows outside of blocks; NaN if there are none."""

    variant: str
    model_version: str
    model_digest: str | None
    rows: int
    degraded: int
    mean_score: float
    mean_latency_us: float
    last_us: int


def merge_stats(parts: Sequence[VariantStats]) -> VariantStats:
    """Combine the statistics of several parts; variant and model are those of the first."""
    rows = sum(part.rows for part in parts)
    scored = [part for part in parts if not math.isnan(part.mean_score)]
    weight = sum(part.rows for part in scored)
    return parts[0]._replace(
        rows=rows,
        degraded=sum(part.degraded for part in parts),
        mean_score=sum(part.mean_score * part.rows for part in scored) / weight if weight else math.nan,
        mean_latency_us=sum(part.mean_latency_us * part.rows for part in parts) / rows,
        last_us=max(part.last_us for part in parts),
    )


def select_stats(since_us: int, until_us: int | None, table: sa.FromClause) -> sa.Select[Any]:
    """Select the columns of `VariantStats` from predictions or blocks with since ≤ time < until."""
    is_block = "rows" in table.c
    count: sa.ColumnElement[int] = table.c.rows if is_block else sa.literal(1)
    by = (table.c.variant, table.c.model_version, table.c.model_digest)
    return (
        sa.select(
            *by,
            sa.func.sum(count),
            sa.func.sum(sa.cast(table.c.degraded, sa.Integer) * count),
            # The scores of a block are packed inside it and not counted here.
            sa.null() if is_block else sa.func.avg(table.c.score),
            sa.func.sum(table.c.latency_us * count),
            sa.func.max(table.c.timestamp_us),
        )
        .where(table.c.timestamp_us >= since_us, sa.true() if until_us is None else table.c.timestamp_us < until_us)
        .group_by(*by)
    )
