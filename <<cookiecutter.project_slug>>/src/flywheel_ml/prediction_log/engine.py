"""Opening a log's database: made where there is none, checked where there is."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from flywheel_ml.prediction_log import migrations
from flywheel_ml.prediction_log.migrations import migrate
from flywheel_ml.prediction_log.rows import SCHEMA_VERSION
from flywheel_ml.utils.databases import DEFAULT_DRIVERS
from flywheel_ml.utils.errors import ConfigError

TIMEOUTS = {"connect_timeout": 3, "tcp_user_timeout": 5000}
"""Of a PostgreSQL that cannot be reached: in seconds and milliseconds, as libpq has it."""

LOCK_NOT_AVAILABLE = "55P03"
BUSY = (
    "it is being read or written, and its schema has to change; end the others (`monitor`, older servers), then retry"
)


def create_engine(address: str | sa.URL, pings: bool = False) -> sa.Engine:
    """What connects to an address; raises `ConfigError` where that opens no database.

    With `pings`, a connection that was kept is tried before it is used again.
    """
    try:
        url = sa.make_url(address)
        url = url.set(drivername=DEFAULT_DRIVERS.get(url.drivername, url.drivername))
        is_libpq = url.get_backend_name() == "postgresql" and url.get_driver_name().startswith("psycopg")
        limits = {name: value for name, value in TIMEOUTS.items() if is_libpq and name not in url.query}
        return sa.create_engine(url, connect_args=limits, pool_pre_ping=pings)
    except (sa.exc.ArgumentError, ImportError) as error:
        # Without the address, which may hold a password.
        raise ConfigError(f"ML_PREDICTION_LOG: no database can be opened by this address ({error})") from None


def open_engine(url: str | sa.URL) -> sa.Engine:
    """The same, its tables being there and of this version; raises `ConfigError` where a newer package made them."""
    engine = create_engine(url)
    with translate_errors(engine):
        ensure_schema(engine)
    return engine


def ensure_schema(engine: sa.Engine) -> None:
    """Make the tables, or migrate them; raises as `opened`, and what the driver raises."""
    with engine.connect() as connection:
        found = check_version(connection)
    if found < SCHEMA_VERSION:
        migrate(engine)


def check_version(connection: sa.Connection) -> int:
    """Schema version found, 0 in an empty database; raises `ConfigError` where a newer package made it."""
    found = migrations.read_version(connection)
    if found > SCHEMA_VERSION:
        raise ConfigError(
            f"prediction log {_format_url(connection.engine)} has schema version {found}, "
            f"this package knows {SCHEMA_VERSION}; update the package"
        )
    return found


@contextmanager
def translate_errors(engine: sa.Engine) -> Iterator[None]:
    """Say which log it is that cannot be used; raises `ConfigError`."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        is_locked = getattr(error.orig, "sqlstate", "") == LOCK_NOT_AVAILABLE
        reason = BUSY if is_locked else error.orig
        raise ConfigError(f"prediction log {_format_url(engine)} cannot be used: {reason}") from None


def _format_url(engine: sa.Engine) -> str:
    # Its query may hold a password as well.
    return engine.url.set(query={}).render_as_string(hide_password=True)
