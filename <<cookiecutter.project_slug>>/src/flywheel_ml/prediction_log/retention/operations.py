"""Deletes rows of one SQLite file in short transactions, which its owner runs between its commits."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from pydantic import Field

from flywheel_ml.prediction_log.rows import TABLES, block_row_id, labels, metric_values
from flywheel_ml.prediction_log.stores import SQLiteStore
from flywheel_ml.utils.config_model import StrictModel

STEP_SECONDS = 0.004
"""About how long one transaction may take. Other commits wait meanwhile."""
MIN_ROWS, MAX_ROWS = 5, 2000
RELEASED_PAGES = 200
"""Unused pages that one transaction returns to the disk."""
JOURNAL_SECONDS = 30.0
"""How long to wait for readers before the journal is emptied."""
KEPT_TABLES = ("jobs",)
"""Never pruned: a few rows that name the files which batch scoring wrote, where an erasure looks too."""


class TableRule(NamedTuple):
    """How retention treats one table.

    Attributes:
        is_timed: whether rows are pruned by `timestamp_us`; labels of predictions leave with their prediction.
        entity_column: an indexed column with the entity's key; rows of the other tables are deleted by their ids.
    """

    table: sa.Table
    is_timed: bool = True
    entity_column: str | None = None


LABEL_TABLES = (labels.name, metric_values.name)
"""Rows that belong to a prediction by its id, and leave with it."""
_SPECIAL = {"entity_labels": {"entity_column": "entity_id"}, **{name: {"is_timed": False} for name in LABEL_TABLES}}

RULES: dict[str, TableRule] = {
    table.name: TableRule(table, **_SPECIAL.get(table.name, {}))  # type: ignore[arg-type]
    for table in TABLES.values()
    if table.name not in KEPT_TABLES
}
"""Name of a table → its rule. A new table of the log is pruned by its `timestamp_us` unless it is listed above."""

PREDICTION_COLUMNS = tuple(column.name for column in RULES["predictions"].table.columns)
_INSERT = (
    f"INSERT OR IGNORE INTO predictions ({', '.join(PREDICTION_COLUMNS)}) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(PREDICTION_COLUMNS))})"
)

Counts = Counter[str]
"""Table → number of deleted rows; `unread` counts files whose journal is still in use."""


class Operation(StrictModel):
    """A change of every file of a log.

    Attributes:
        kind: `prune` deletes rows older than `until_us`, `delete` the rows listed.
        until_us: exclusive.
        ids: table → ids of rows.
        entity: key of an entity; its rows of tables with a rule for entities are deleted.
        replacements: id of a block → the values of predictions that replace it.
        scrub: whether the deleted bytes must leave the journal too.
        rebuild: whether files that no process owns are rebuilt, which removes what older versions left in them.
    """

    kind: Literal["prune", "delete"]
    until_us: int = 0
    ids: dict[str, list[str]] = Field(default_factory=dict)
    entity: str | None = None
    replacements: dict[str, list[list[Any]]] = Field(default_factory=dict)
    scrub: bool = False
    rebuild: bool = False


class _Batch:
    """The number of rows of a transaction, adapted to the time that the last one took."""

    def __init__(self) -> None:
        self.rows = 20

    def adapt(self, seconds: float) -> None:
        wanted = self.rows * STEP_SECONDS / max(seconds, 1e-5)
        self.rows = int(min(max(wanted, self.rows / 4, MIN_ROWS), self.rows * 2, MAX_ROWS))


def run(store: SQLiteStore, operation: Operation) -> Iterator[Counts]:
    """Carry out an operation on a file; each step is one short transaction and yields what it deleted.

    Every step may be the last: a rerun completes what an interruption left.
    """
    if operation.kind == "prune":
        for name, rule in RULES.items():
            if rule.is_timed:
                yield from _prune(store, name, operation.until_us)
    else:
        yield from _delete(store, operation)
    unused = 1
    while unused > 0:
        before = unused
        unused = store.release_pages(RELEASED_PAGES)
        yield Counter()
        if unused == before:
            break
    if operation.scrub:
        yield from _empty_journal(store)
    else:
        store.empty_journal()  # Returns space; unless a reader uses the journal.


def _prune(store: SQLiteStore, name: str, until_us: int) -> Iterator[Counts]:
    batch = _Batch()
    key = RULES[name].table.primary_key.columns[0].name
    while True:
        started = time.perf_counter()
        # Blocks are large.
        limit = max(1, batch.rows // 50) if name == "blocks" else batch.rows
        with store.change() as connection:
            found = connection.execute(
                f"DELETE FROM {name} WHERE rowid IN (SELECT rowid FROM {name} WHERE timestamp_us < ? LIMIT {limit}) "  # noqa: S608
                f"RETURNING {key}",
                (until_us,),
            ).fetchall()
            gone = _delete_labels(connection, name, [one for (one,) in found])
        yield Counter({name: len(found)}) + gone
        if len(found) < limit:
            return
        batch.adapt(time.perf_counter() - started)


def _delete_labels(connection: Any, name: str, ids: Sequence[str]) -> Counts:
    """Delete the labels of predictions or blocks that are in the same file; other files follow later."""
    where = "prediction_id = ?" if name == "predictions" else "prediction_id BETWEEN ? AND ?"
    keys: list[tuple[str, ...]] = []
    if name == "predictions":
        keys = [(one,) for one in ids]
    elif name == "blocks":
        # The ids of a block's rows share all digits but the last eight.
        keys = [(block_row_id(one, 0), block_row_id(one, 0xFFFFFFFF)) for one in ids]
    found: Counts = Counter()
    for table in LABEL_TABLES if keys else ():
        found[table] += max(int(connection.executemany(f"DELETE FROM {table} WHERE {where}", keys).rowcount), 0)  # noqa: S608
    return found


def _delete(store: SQLiteStore, operation: Operation) -> Iterator[Counts]:
    for block, rows in operation.replacements.items():
        with store.change() as connection:
            # The block and its replacement in one transaction: readers see one of the two.
            deleted = connection.execute("DELETE FROM blocks WHERE id = ?", (block,)).rowcount
            if deleted:
                connection.executemany(_INSERT, rows)
        yield Counter(blocks=deleted)
    for name, ids in operation.ids.items():
        key = RULES[name].table.primary_key.columns[0].name
        yield from _delete_ids(store, name, key, ids)
    if operation.entity is not None:
        for name, rule in RULES.items():
            if rule.entity_column is not None:
                yield from _delete_entity(store, name, rule.entity_column, operation.entity)


def _delete_ids(store: SQLiteStore, name: str, key: str, ids: Sequence[str]) -> Iterator[Counts]:
    batch, at = _Batch(), 0
    while at < len(ids):
        started, some = time.perf_counter(), ids[at : at + batch.rows]
        with store.change() as connection:
            found = connection.executemany(f"DELETE FROM {name} WHERE {key} = ?", [(one,) for one in some])  # noqa: S608
        at += len(some)
        yield Counter({name: max(found.rowcount, 0)})
        batch.adapt(time.perf_counter() - started)


def _delete_entity(store: SQLiteStore, name: str, column: str, entity: str) -> Iterator[Counts]:
    deleted = MAX_ROWS
    while deleted == MAX_ROWS:
        with store.change() as connection:
            deleted = connection.execute(
                f"DELETE FROM {name} WHERE rowid IN (SELECT rowid FROM {name} WHERE {column} = ? LIMIT {MAX_ROWS})",  # noqa: S608
                (entity,),
            ).rowcount
        yield Counter({name: deleted})


def _empty_journal(store: SQLiteStore) -> Iterator[Counts]:
    """Empty the journal, which holds former versions of the changed pages."""
    until = time.monotonic() + JOURNAL_SECONDS
    while not store.empty_journal():
        if time.monotonic() > until:
            yield Counter(unread=1)
            return
        yield Counter()


def merge(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Add up deleted rows by table, without zeros."""
    return {name: count for name, count in (Counter(counts) + Counter(more)).items() if count}
