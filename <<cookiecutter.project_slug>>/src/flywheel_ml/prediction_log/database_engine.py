"""Opens the database of a log: creates or checks its schema, and translates connection errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from flywheel_ml.prediction_log import migrations
from flywheel_ml.prediction_log.migrations import migrate
from flywheel_ml.prediction_log.rows import SCHEMA_VERSION
from flywheel_ml.utils.databases import DEFAULT_DRIVERS
from flywheel_ml.utils.errors import ConfigError

TIMEOUTS = {"connect_timeout": 3, "tcp_user_timeout": 5000}
"""Timeouts for an unreachable PostgreSQL, in libpq's units: seconds and milliseconds."""

LOCK_NOT_AVAILABLE = "55P03"
BUSY = "its schema must be migrated while other processes use it; stop them (`monitor`, older servers), then retry"


def create_engine(address: str | sa.URL, pings: bool = False) -> sa.Engine:
    """Create an engine for a path or URL; raises `ConfigError` if it names no usable database.

    With `pings`, the pool tests a connection before it reuses it.
    """
    try:
        url = sa.make_url(address)
        url = url.set(drivername=DEFAULT_DRIVERS.get(url.drivername, url.drivername))
        is_libpq = url.get_backend_name() == "postgresql" and url.get_driver_name().startswith("psycopg")
        limits = {name: value for name, value in TIMEOUTS.items() if is_libpq and name not in url.query}
        return sa.create_engine(url, connect_args=limits, pool_pre_ping=pings)
    except (sa.exc.ArgumentError, ImportError) as error:
        # The address may hold a password, so the message omits it.
        raise ConfigError(f"ML_PREDICTION_LOG: no database can be opened by this address ({error})") from None


def open_engine(url: str | sa.URL) -> sa.Engine:
    """Create an engine whose tables have the current schema; raises `ConfigError` if a newer package made them."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_file)
    with translate_errors(engine):
        ensure_schema(engine)
    return engine


def _configure_file(connection: sqlite3.Connection, _: object) -> None:
    # Applies to new files only: deleted pages can later be returned to the disk while the file is in use.
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA secure_delete=ON")


def ensure_schema(engine: sa.Engine) -> None:
    """Create or migrate the tables; raises `ConfigError` as `open_engine`, and the driver's errors."""
    with engine.connect() as connection:
        found = check_version(connection)
    if found < SCHEMA_VERSION:
        migrate(engine)


def check_version(connection: sa.Connection) -> int:
    """Return the schema version, 0 if the database is empty; raises `ConfigError` if a newer package made it."""
    found = migrations.read_version(connection)
    if found > SCHEMA_VERSION:
        raise ConfigError(
            f"prediction log {_format_url(connection.engine)} has schema version {found}, "
            f"this package knows {SCHEMA_VERSION}; update the package"
        )
    return found


@contextmanager
def translate_errors(engine: sa.Engine) -> Iterator[None]:
    """Translate driver errors to a `ConfigError` that names the log."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        is_locked = getattr(error.orig, "sqlstate", "") == LOCK_NOT_AVAILABLE
        reason = BUSY if is_locked else error.orig
        raise ConfigError(f"prediction log {_format_url(engine)} cannot be used: {reason}") from None


def _format_url(engine: sa.Engine) -> str:
    # The query string may hold a password too.
    return engine.url.set(query={}).render_as_string(hide_password=True)
