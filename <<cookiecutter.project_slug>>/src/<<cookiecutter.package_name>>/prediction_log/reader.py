"""The reader: all that was written, as one log."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa

from ..errors import ConfigError
from .opening import engine_of, explained, version_of
from .rows import BLOCK_DIGITS, SHADOW, Block, Job, Prediction, blocks, id_in_block, jobs, labels, predictions

MAX_VARIABLES = 10_000
"""Ids asked for in one query; SQLite takes at most 32,766."""

_IN_BLOCK = re.compile(r"[0-9a-f]{32}")
_READ_ONLY = {"mode": "ro", "uri": "true"}


class Tally(NamedTuple):
    """What one model did in one variant; `mean_score` is of the rows that were logged one by one, NaN without any."""

    variant: str
    model_version: str
    rows: int
    degraded: int
    mean_score: float
    mean_latency_us: float
    last_us: int


class Logged(NamedTuple):
    """A prediction read back, with its label (a JSON text) where one has arrived."""

    prediction: Prediction
    label: str | None


class Reader:
    """Reads a whole log, all files of a folder as one. Never writes.

    Args:
        target: a folder, or a database URL.
        stays: whether connections to a database are kept from one question to the next, until `close`.

    Raises:
        ConfigError: a file was written by a newer version of this package.
    """

    def __init__(self, target: str, stays: bool = False) -> None:
        self._target = target
        self._kept = engine_of(target, pings=True) if stays and "://" in target else None
        self._kept_version = 0

    def close(self) -> None:
        """Close what was kept."""
        if self._kept is not None:
            self._kept.dispose()

    def predictions(
        self,
        since_us: int = 0,
        until_us: int | None = None,
        model_version: str | None = None,
        variant: str | None = None,
    ) -> Iterator[Logged]:
        """Predictions with since ≤ time < until, in the order of each file, joined with their labels.

        What a shadow said was nobody's answer, and is left out unless `variant` asks for it.
        A label may stand in another file than its prediction; they are looked up in step, so that memory stays flat.
        Blocks follow what was logged row by row.

        Raises:
            ConfigError: there are blocks, and pyarrow is not installed.
        """

        def asked(table: sa.Table) -> sa.Select[Any]:
            query = sa.select(table).where(table.c.at_us >= since_us).order_by(table.c.id)
            if until_us is not None:
                query = query.where(table.c.at_us < until_us)
            if model_version is not None:
                query = query.where(table.c.model_version == model_version)
            return query.where(table.c.variant != SHADOW if variant is None else table.c.variant == variant)

        of_blocks = (one for row in self._rows(asked(blocks), 2) for one in _unpacked(Block._make(row)))
        found = itertools.chain(map(Prediction._make, self._rows(asked(predictions))), of_blocks)
        while some := list(itertools.islice(found, MAX_VARIABLES)):
            outcomes = self.labels([prediction.id for prediction in some])
            yield from (Logged(prediction, outcomes.get(prediction.id)) for prediction in some)

    def tallies(self, since_us: int = 0) -> list[Tally]:
        """Counts of each variant and version from a moment on, shadows included, by variant and version."""
        found: dict[tuple[str, str], list[Tally]] = {}
        for table, count, version in ((predictions, sa.literal(1), 1), (blocks, blocks.c.rows, 2)):
            # What a block's rows scored lies packed within it, and counts for nothing here.
            scores = sa.func.avg(table.c.score) if table is predictions else sa.null()
            query = (
                sa.select(
                    table.c.variant,
                    table.c.model_version,
                    sa.func.sum(count),
                    sa.func.sum(sa.cast(table.c.degraded, sa.Integer) * count),
                    scores,
                    sa.func.sum(table.c.latency_us * count),
                    sa.func.max(table.c.at_us),
                )
                .where(table.c.at_us >= since_us)
                .group_by(table.c.variant, table.c.model_version)
            )
            for variant, model, rows, degraded, score, latency, last in self._rows(query, version):
                mean = math.nan if score is None else float(score)
                part = Tally(variant, model, int(rows), int(degraded), mean, float(latency) / int(rows), last)
                found.setdefault((variant, model), []).append(part)
        return [_together(found[key]) for key in sorted(found)]

    def labels(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Prediction id → label (a JSON text); of all, or of the ids given."""
        query = sa.select(labels.c.prediction_id, labels.c.label)
        if ids is None:
            return dict(self._rows(query))
        return {
            found: label
            for some in _batches(ids)
            for found, label in self._rows(query.where(labels.c.prediction_id.in_(some)))
        }

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are predictions in the log."""
        query = sa.select(predictions.c.id)
        found = {found for some in _batches(ids) for (found,) in self._rows(query.where(predictions.c.id.in_(some)))}
        return found | self._in_blocks([one for one in ids if one not in found and _IN_BLOCK.fullmatch(one)])

    def find(self, name: str) -> Prediction | None:
        """The prediction of this id, a shadow's too; None where the log has none. Raises as `predictions`."""
        found = list(self._rows(sa.select(predictions).where(predictions.c.id == name)))
        if found or not self._in_blocks([name] if _IN_BLOCK.fullmatch(name) else []):
            return Prediction._make(found[0]) if found else None
        first = id_in_block(name, 0)
        (block,) = self._rows(sa.select(blocks).where(blocks.c.id == first), 2)
        return next(row for row in _unpacked(Block._make(block)) if row.id == name)

    def _in_blocks(self, ids: Sequence[str]) -> set[str]:
        first = {one: id_in_block(one, 0) for one in ids}
        query = sa.select(blocks.c.id, blocks.c.rows)
        sizes = {
            found: rows
            for some in _batches(sorted(set(first.values())))
            for found, rows in self._rows(query.where(blocks.c.id.in_(some)), 2)
        }
        return {one for one in ids if int(one[-BLOCK_DIGITS:], 16) < sizes.get(first[one], 0)}

    def jobs(self) -> list[Job]:
        """All batch jobs, oldest first."""
        return sorted((Job._make(row) for row in self._rows(sa.select(jobs))), key=lambda job: job.at_us)

    def _rows(self, query: sa.Select[Any], version: int = 1) -> Iterator[Any]:
        for engine in self._engines(version):
            try:
                with explained(engine), engine.connect() as connection:
                    yield from connection.execution_options(yield_per=5000).execute(query)
            finally:
                if engine is not self._kept:
                    engine.dispose()

    def _engines(self, version: int) -> Iterator[sa.Engine]:
        if self._kept is not None:
            if self._kept_version < version:
                self._kept_version = version_of(self._kept)
            if self._kept_version >= version:
                yield self._kept
            return
        urls: list[str | sa.URL] = [self._target]
        if "://" not in self._target:
            paths = sorted(Path(self._target).glob("*.db"))
            urls = [sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query=_READ_ONLY) for path in paths]
        for engine in map(engine_of, urls):
            if version_of(engine) >= version:
                yield engine


def _together(parts: Sequence[Tally]) -> Tally:
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


def _unpacked(block: Block) -> Iterator[Prediction]:
    from ..blocks import rows

    try:
        for at, row in enumerate(rows(block.inputs, block.outputs, block.key)):
            entity = None if row.key is None else str(row.key)
            yield Prediction(
                id_in_block(block.id, at),
                block.at_us,
                entity,
                block.variant,
                block.model_version,
                row.inputs,
                row.output,
                row.score,
                block.latency_us,
                block.degraded,
            )
    except ImportError:
        raise ConfigError(
            "the prediction log holds requests in Arrow, and pyarrow is not installed; install the extra 'arrow'"
        ) from None


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[at : at + MAX_VARIABLES] for at in range(0, len(ids), MAX_VARIABLES))
