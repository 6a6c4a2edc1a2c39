"""Deletes rows of a PostgreSQL log in short transactions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from flywheel_ml.prediction_log.database_engine import create_engine, ensure_schema, translate_errors
from flywheel_ml.prediction_log.retention.operations import LABEL_TABLES, PREDICTION_COLUMNS, RULES, Operation, merge
from flywheel_ml.prediction_log.retention.requests import Outcome
from flywheel_ml.prediction_log.retention.scan import split
from flywheel_ml.prediction_log.rows import block_row_id, predictions

ROWS, BLOCKS = 500, 10
"""Rows of one transaction."""
ROW_BYTES = 150
"""About how many bytes a row takes in addition to its values: headers, and its entries in the indexes."""
PAUSE = 4.0
"""How long to pause after a transaction, in durations of the transaction."""
STATEMENT_SECONDS = 60
"""The longest time that a statement may take; the server's own limit may be shorter."""


def change_database(url: str, operation: Operation) -> Outcome:
    """Carry out an operation on a database; every transaction may be the last, and a rerun completes the rest.

    Raises:
        ConfigError: the database cannot be used.
    """
    engine = create_engine(url)
    try:
        with translate_errors(engine):
            ensure_schema(engine)
            counts: dict[str, int] = {}
            for deleted in _prune(engine, operation) if operation.kind == "prune" else _delete(engine, operation):
                counts = merge(counts, deleted)
            if operation.scrub:
                # The rows that other transactions may still see stay until autovacuum's next run.
                with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                    for rule in RULES.values():
                        connection.exec_driver_sql(f"VACUUM {rule.table.name}")
            return Outcome(counts, {})
    finally:
        engine.dispose()


def measure_bytes(url: str) -> tuple[int, int]:
    """Return the size of the log's tables and indexes, and about how many of these bytes hold rows.

    The size does not shrink after deletions, because PostgreSQL keeps the space for new rows.
    """
    engine = create_engine(url)
    try:
        with translate_errors(engine), engine.connect() as connection:
            found = sa.inspect(connection)
            tables = [rule.table for rule in RULES.values() if found.has_table(rule.table.name)]
            size = sum(connection.scalar(sa.select(sa.func.pg_total_relation_size(one.name))) or 0 for one in tables)
            used = sum(int(connection.scalar(_select_used(one)) or 0) for one in tables)
            return size, min(size, used)
    finally:
        engine.dispose()


def _select_used(table: sa.Table) -> sa.Select[tuple[int]]:
    size: sa.ColumnElement[int] = sa.literal(ROW_BYTES)
    for column in table.columns:
        size = size + sa.func.coalesce(sa.func.pg_column_size(column), 0)
    return sa.select(sa.func.sum(size))


@contextmanager
def _begin(engine: sa.Engine) -> Iterator[sa.Connection]:
    started = time.perf_counter()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
        yield connection
    time.sleep((time.perf_counter() - started) * PAUSE)


def _prune(engine: sa.Engine, operation: Operation) -> Iterator[dict[str, int]]:
    for name, rule in RULES.items():
        if not rule.is_timed:
            continue
        limit = BLOCKS if name == "blocks" else ROWS
        keys = sa.tuple_(*rule.table.primary_key.columns)
        old = sa.select(*rule.table.primary_key.columns).where(rule.table.c.timestamp_us < operation.until_us)
        deletion = sa.delete(rule.table).where(keys.in_(old.limit(limit))).returning(*rule.table.primary_key.columns)
        deleted = limit
        while deleted == limit:
            with _begin(engine) as connection:
                ids = [row[0] for row in connection.execute(deletion)]
                gone = _delete_labels(connection, name, ids)
            deleted = len(ids)
            yield merge({name: deleted}, gone)


def _delete_labels(connection: sa.Connection, name: str, ids: list[str]) -> dict[str, int]:
    if not ids or name not in ("predictions", "blocks"):
        return {}
    spans = [(block_row_id(one, 0), block_row_id(one, 0xFFFFFFFF)) for one in ids] if name == "blocks" else []
    found = {}
    for table in LABEL_TABLES:
        owner = RULES[table].table.c.prediction_id
        which = sa.or_(*(owner.between(*span) for span in spans)) if spans else owner.in_(ids)
        found[table] = connection.execute(sa.delete(RULES[table].table).where(which)).rowcount
    return found


def _delete(engine: sa.Engine, operation: Operation) -> Iterator[dict[str, int]]:
    blocks = RULES["blocks"].table
    for block, rows in operation.replacements.items():
        with _begin(engine) as connection:
            deleted = connection.execute(sa.delete(blocks).where(blocks.c.id == block)).rowcount
            if deleted and rows:
                values = [dict(zip(PREDICTION_COLUMNS, row, strict=True)) for row in rows]
                connection.execute(postgresql.insert(predictions).on_conflict_do_nothing(), values)
        yield {"blocks": deleted}
    for name, ids in operation.ids.items():
        table = RULES[name].table
        key = table.primary_key.columns[0]
        for some in split(ids, ROWS):
            with _begin(engine) as connection:
                deleted = connection.execute(sa.delete(table).where(key.in_(some))).rowcount
            yield {name: deleted}
    if operation.entity is not None:
        for name, rule in RULES.items():
            if rule.entity_column is not None:
                of_entity = rule.table.c[rule.entity_column] == operation.entity
                with _begin(engine) as connection:
                    deleted = connection.execute(sa.delete(rule.table).where(of_entity)).rowcount
                yield {name: deleted}
