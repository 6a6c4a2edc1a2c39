"""Migrates databases of older schemas in place, and reads them unmigrated."""

import sqlalchemy as sa

from flywheel_ml.prediction_log.rows import (
    SCHEMA_VERSION,
    TABLES,
    blocks,
    entity_labels,
    metadata,
    metric_values,
    versions,
)

LOCK_SECONDS = 5
"""How long a migration waits for its lock on a PostgreSQL database. Meanwhile, new rows wait behind it."""

_TIME = {"timestamp_us": "at_us"}
_RENAMED = {
    "predictions": {**_TIME, "entity_id": "entity"},
    "blocks": {**_TIME, "entity_column": "key"},
    "labels": _TIME,
    "jobs": _TIME,
}
"""Columns with another name in schemas 1 and 2: table → current name → old name."""
_ADDED = {
    "event_timestamp_us": 3,
    "event_timestamp_column": 3,
    "model_digest": 3,
    "arrived_us": 4,
    "assigned_variant": 5,
}
"""Column → the schema that added it."""
_ADDED_TABLES = {blocks.name: 2, entity_labels.name: 4, metric_values.name: 5}
"""Table → the schema that added it."""
_LOCK = 0x666C7977686C6F67
"""Key of the advisory lock for migrations."""


def read_version(connection: sa.Connection) -> int:
    """Return the schema version of a database, 0 if it is empty."""
    if not sa.inspect(connection).has_table(versions.name):
        return 0
    return connection.scalar(sa.select(sa.func.max(versions.c.version))) or 0


def migrate(engine: sa.Engine) -> None:
    """Create the tables or upgrade them to the current schema, in one transaction and one process at a time.

    Rows are not rewritten, so a migration takes milliseconds at any size. It waits for current readers, or they finish
    on the old schema.
    """
    with engine.begin() as connection:
        _lock(connection)
        if read_version(connection) >= SCHEMA_VERSION:
            return  # Another process did it first.
        for table in TABLES.values():
            _upgrade(connection, table)
        metadata.create_all(connection)
        connection.execute(sa.insert(versions), {"version": SCHEMA_VERSION})


def select_as_current(version: int, table: sa.Table) -> sa.FromClause | None:
    """Select a table of a database with this schema version under its current column names; None if it is absent."""
    if version >= SCHEMA_VERSION:
        return table
    if version < _ADDED_TABLES.get(table.name, 1):
        return None
    names = _RENAMED[table.name] if version < 3 else {}
    then = sa.table(table.name, *(sa.column(names.get(c.name, c.name), c.type) for c in table.columns))
    columns = [
        (sa.cast(sa.null(), c.type) if version < _ADDED.get(c.name, 1) else then.c[names.get(c.name, c.name)]).label(
            c.name
        )
        for c in table.columns
    ]
    return sa.select(*columns).select_from(then).subquery(table.name)


def _lock(connection: sa.Connection) -> None:
    if connection.dialect.name != "postgresql":
        # Python's driver would begin a transaction at the first row only and commit each table separately.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if sa.inspect(connection).has_table(versions.name):
        # Readers query the version first and hold this table until they finish.
        connection.exec_driver_sql(f"LOCK TABLE {versions.name} IN ACCESS EXCLUSIVE MODE")


def _upgrade(connection: sa.Connection, table: sa.Table) -> None:
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name):
        return
    # Check the columns, not the version: before schema 3, a killed process could leave tables without a version.
    found = {column["name"] for column in inspector.get_columns(table.name)}
    for name, then in _RENAMED.get(table.name, {}).items():
        if then in found:
            connection.exec_driver_sql(f'ALTER TABLE {table.name} RENAME COLUMN "{then}" TO {name}')
    for column in table.columns:
        if column.name in _ADDED.keys() - found:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
