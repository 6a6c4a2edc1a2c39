"""Stores profiles of the prediction log: counts for each hour, model and variant.

They lie in `profiles.sqlite` in the log's folder, or in two tables of its database, and outlive the rows that they
count. Each hour is replaced in one transaction. The file does without SQLite's WAL, so several processes may write it.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import sqlalchemy as sa

from flywheel_ml.prediction_log.database_engine import create_engine
from flywheel_ml.prediction_log.reader import Reader
from flywheel_ml.utils.errors import ConfigError

FILE = "profiles.sqlite"
SCHEMA_VERSION = 1
BUSY_SECONDS = 30
_NO_DIGEST = ""
_LOCK = 0x666C797770726F66
"""Key of the advisory lock for writers of a database."""

metadata = sa.MetaData()
versions = sa.Table("profile_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))
hours = sa.Table(
    "profiled_hours",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
)
profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("model_digest", sa.String(64), primary_key=True),
    sa.Column("model_version", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, primary_key=True),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("degraded", sa.BigInteger, nullable=False),
    sa.Column("first_us", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
    sa.Column("bins", sa.String(64), nullable=False),
    sa.Column("counts", sa.LargeBinary, nullable=False),
)


class ModelKey(NamedTuple):
    """A model as log rows name it; rows logged before schema 3 have no digest."""

    version: str
    digest: str | None


class HourlyProfile(NamedTuple):
    """The counts of one hour, model and variant.

    Attributes:
        hour: hours since 1970, UTC.
        model, variant: as in the rows.
        rows: number of rows; a fallback answered `degraded` of them.
        first_us, last_us: time of the first and the last row.
        bins: the hash of the bins of `counts`; empty if the model's bundle was not available and nothing was counted.
        counts: int64 [n], as `packing.pack` arranges them.
    """

    hour: int
    model: ModelKey
    variant: str
    rows: int
    degraded: int
    first_us: int
    last_us: int
    bins: str
    counts: np.ndarray

    def add(self, other: Self) -> Self:
        """Add the counts of other rows, counted in the same bins."""
        return self._replace(
            rows=self.rows + other.rows,
            degraded=self.degraded + other.degraded,
            first_us=min(self.first_us, other.first_us),
            last_us=max(self.last_us, other.last_us),
            counts=self.counts + other.counts,
        )


class ProfileStore:
    """The profiles of one log.

    Args:
        target: the log: a folder, or a database URL.

    Raises:
        ConfigError: the profiles cannot be opened, or a newer version of this package wrote them.
    """

    def __init__(self, target: str) -> None:
        self._is_file = "://" not in target
        self._name = str(Path(target) / FILE) if self._is_file else "of the prediction log"
        url: str | sa.URL = sa.URL.create("sqlite", database=self._name) if self._is_file else target
        self._engine = create_engine(url)
        if self._is_file:
            sa.event.listen(self._engine, "connect", _begin_explicitly)
        try:
            with self._transaction(writes=True) as connection:
                metadata.create_all(connection)
                found = connection.scalar(sa.select(sa.func.max(versions.c.version)))
                if found is None:
                    connection.execute(sa.insert(versions), {"version": SCHEMA_VERSION})
        except BaseException:
            self.close()
            raise
        if found is not None and found > SCHEMA_VERSION:
            self.close()
            raise ConfigError(
                f"profiles {self._name} have schema version {found}, this package knows {SCHEMA_VERSION}; "
                "update the package"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def count_hours(self) -> dict[int, int]:
        """Return hour → rows that the log had when the hour was profiled, of all models and variants."""
        with self._transaction() as connection:
            found = connection.execute(sa.select(hours.c.hour, hours.c.rows).order_by(hours.c.hour))
            return dict(map(tuple, found))

    def replace(self, hour: int, entries: Sequence[HourlyProfile]) -> None:
        """Replace the profiles of an hour, in one transaction."""
        rows = [
            {
                "hour": hour,
                "model_digest": entry.model.digest or _NO_DIGEST,
                "model_version": entry.model.version,
                "variant": entry.variant,
                "rows": entry.rows,
                "degraded": entry.degraded,
                "first_us": entry.first_us,
                "last_us": entry.last_us,
                "bins": entry.bins,
                "counts": zlib.compress(entry.counts.astype("<i8").tobytes(), 1),
            }
            for entry in entries
        ]
        with self._transaction(writes=True) as connection:
            for table in (profiles, hours):
                connection.execute(sa.delete(table).where(table.c.hour == hour))
            connection.execute(sa.insert(hours), {"hour": hour, "rows": sum(entry.rows for entry in entries)})
            if rows:
                connection.execute(sa.insert(profiles), rows)

    def read(
        self, first_hour: int, last_hour: int, model: ModelKey | None = None, excluded_variant: str = ""
    ) -> Iterator[HourlyProfile]:
        """Yield profiles with first_hour ≤ hour ≤ last_hour.

        A model's digest selects its profiles; those without a digest are selected by the version.
        """
        table = profiles
        query = sa.select(table).where(table.c.hour.between(first_hour, last_hour)).order_by(table.c.hour)
        if model is not None:
            older = sa.and_(table.c.model_digest == _NO_DIGEST, table.c.model_version == model.version)
            query = query.where(sa.or_(table.c.model_digest == (model.digest or _NO_DIGEST), older))
        query = query.where(table.c.variant != excluded_variant)
        with self._transaction() as connection:
            for row in connection.execute(query):
                yield HourlyProfile(
                    hour=row.hour,
                    model=ModelKey(row.model_version, row.model_digest or None),
                    variant=row.variant,
                    rows=row.rows,
                    degraded=row.degraded,
                    first_us=row.first_us,
                    last_us=row.last_us,
                    bins=row.bins,
                    counts=np.frombuffer(zlib.decompress(row.counts), dtype="<i8"),
                )

    def count_answers(self, first_hour: int, last_hour: int) -> Iterator[tuple[int, str, ModelKey, int]]:
        """Yield hour, variant, model and the rows that the model answered, without reading any counts."""
        table = profiles
        query = sa.select(
            table.c.hour,
            table.c.variant,
            table.c.model_version,
            table.c.model_digest,
            table.c.rows - table.c.degraded,
        ).where(table.c.hour.between(first_hour, last_hour))
        with self._transaction() as connection:
            for hour, variant, version, digest, rows in connection.execute(query):
                yield hour, variant, ModelKey(version, digest or None), rows

    def find_uncounted(self) -> dict[ModelKey, list[int]]:
        """Return model → hours in which its rows were not counted, because its bundle was not available."""
        found: dict[ModelKey, list[int]] = {}
        table = profiles
        query = sa.select(table.c.model_version, table.c.model_digest, table.c.hour).where(table.c.bins == "")
        with self._transaction() as connection:
            for version, digest, hour in connection.execute(query):
                found.setdefault(ModelKey(version, digest or None), []).append(hour)
        return found

    @contextmanager
    def _transaction(self, writes: bool = False) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                if self._is_file:
                    connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
                    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
                elif writes:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                yield connection
                connection.commit()
        except sa.exc.DBAPIError as error:
            remedy = "; delete the file to rebuild it from the rows" if "not a database" in str(error.orig) else ""
            raise ConfigError(f"profiles {self._name} cannot be used: {error.orig}{remedy}") from None


def count_unprofiled(target: str, until_us: int) -> int:
    """Return the rows of a log before a time whose hour has no profile, or none of their model.

    A server calls this before a prune; it needs none of the libraries that build profiles.
    """
    logged = Reader(target).count_hours(until_us=until_us)
    with ProfileStore(target) as store:
        profiled = store.count_hours()
        missing = {hour: rows for hour, rows in logged.items() if rows > profiled.get(hour, 0)}
        for hours_of_model in store.find_uncounted().values():
            missing |= {hour: logged[hour] for hour in hours_of_model if hour in logged}
    return sum(missing.values())


def _begin_explicitly(connection: Any, _: Any) -> None:
    # Otherwise Python's driver begins a transaction only at the first change.
    connection.isolation_level = None
