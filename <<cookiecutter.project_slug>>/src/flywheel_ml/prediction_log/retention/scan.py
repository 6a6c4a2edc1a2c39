"""Reads a log in chunks, each in its own short transaction, so that its owners can empty their journals meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from flywheel_ml.prediction_log.database_engine import translate_errors
from flywheel_ml.prediction_log.migrations import select_as_current
from flywheel_ml.prediction_log.reader import Reader, unpack_block
from flywheel_ml.prediction_log.rows import Block, Prediction, blocks, predictions
from flywheel_ml.prediction_log.selection import HOUR_US

ROWS_PER_CHUNK, BLOCKS_PER_CHUNK = 2000, 10
IDS_PER_REQUEST = 5000
"""Ids in one request. A server parses it while it serves; this many take some milliseconds."""

Query = Callable[[sa.FromClause], sa.Select[Any]]


class ChunkReader(Reader):
    """Reads chunks of a log; the files of a folder appear as one. Never writes."""

    def scan(
        self, table: sa.Table, column: str, query: Query, lower: Any, rows: int = ROWS_PER_CHUNK
    ) -> Iterator[list[Any]]:
        """Yield the results of a query in chunks, file by file.

        Args:
            table: the table to read.
            column: an indexed column; each chunk covers a range of its values.
            query: builds the query; `scan` adds the range.
            lower: the smallest value of the column to read.
            rows: about how many rows of the table a chunk covers.
        """
        for engine in self._engines():
            start = lower
            try:
                while start is not None:
                    found, start = self._read_chunk(engine, table, column, query, start, rows)
                    yield found
            finally:
                engine.dispose()

    def select_all(self, table: sa.Table, query: Query) -> list[Any]:
        """Return the results of a query in all files."""
        return list(self._rows(table, query))

    def read_predictions(self, since_us: int, until_us: int) -> Iterator[list[Prediction]]:
        """Yield all predictions with since ≤ time < until, those of shadows and blocks too, in chunks."""

        def query(table: sa.FromClause) -> sa.Select[Any]:
            return sa.select(table).where(table.c.timestamp_us < until_us)

        for chunk in self.scan(predictions, "timestamp_us", query, since_us):
            yield [Prediction._make(row) for row in chunk]
        for chunk in self.scan(blocks, "timestamp_us", query, since_us, BLOCKS_PER_CHUNK):
            for row in chunk:
                yield list(unpack_block(Block._make(row)))

    def find_labels(self, rows: Sequence[Prediction]) -> dict[str, str]:
        """Return prediction id → label (a JSON text), joined by id or by entity and time."""
        found = self._join_labels(iter(rows))
        return {one.prediction.id: one.label for one in found if one.label is not None}

    def find_metrics(self, rows: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Return prediction id → business metric → value, of the predictions that have any."""
        found: dict[str, dict[str, float]] = {}
        for one in self.metric_values([row.id for row in rows]):
            found.setdefault(one.prediction_id, {})[one.metric] = one.value
        return found

    def find_orphans(self, table: sa.Table, until_us: int) -> Iterator[list[str]]:
        """Yield the ids in a table of labels whose prediction is no longer in the log, if either is older than a time.

        Ids begin with 12 hex digits of milliseconds; the timestamp of the label decides about other ids.
        """
        bound = f"{until_us // 1000:012x}"

        def query(found: sa.FromClause) -> sa.Select[Any]:
            is_old = sa.or_(found.c.timestamp_us < until_us, found.c.prediction_id < bound)
            return sa.select(found.c.prediction_id).where(is_old)

        for chunk in self.scan(table, "prediction_id", query, ""):
            ids = list(dict.fromkeys(one for (one,) in chunk))
            known = self.find_known(ids)
            if orphans := [one for one in ids if one not in known]:
                yield orphans

    def count_by_hour(self) -> list[tuple[int, int, int]]:
        """Return (hour since 1970, rows, bytes of packed columns) of predictions and blocks, sorted."""

        def query(table: sa.FromClause) -> sa.Select[Any]:
            # Labelled, so that PostgreSQL sees one expression in both places.
            hour = (table.c.timestamp_us // HOUR_US).label("hour")
            count: sa.ColumnElement[Any] = sa.func.count()
            size: sa.ColumnElement[Any] = sa.literal(0)
            if "rows" in table.c:
                packed = sa.func.length(table.c.inputs) + sa.func.length(table.c.outputs)
                count, size = sa.func.sum(table.c.rows), sa.func.sum(packed)
            return sa.select(hour, count, size).group_by(sa.text("hour"))

        found = [
            (int(hour), int(rows), int(size))
            for table in (predictions, blocks)
            for hour, rows, size in self._rows(table, query)
        ]
        return sorted(found)

    def _read_chunk(
        self, engine: sa.Engine, table: sa.Table, column: str, query: Query, start: Any, rows: int
    ) -> tuple[list[Any], Any]:
        with translate_errors(engine), engine.connect() as connection:
            if engine.dialect.name == "sqlite":  # Prevents a migration between two queries.
                connection.exec_driver_sql("BEGIN")
            found = select_as_current(self._version(connection), table)
            if found is None:
                return [], None
            key = found.c[column]
            later = sa.select(key).order_by(key).limit(1)
            end = connection.scalar(later.where(key >= start).offset(rows))
            if end == start:  # More rows than a chunk may share one timestamp.
                end = connection.scalar(later.where(key > start))
            select = query(found).where(key >= start)
            return list(connection.execute(select if end is None else select.where(key < end))), end


def split(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Cut a sequence into parts."""
    return (ids[at : at + size] for at in range(0, len(ids), size))
