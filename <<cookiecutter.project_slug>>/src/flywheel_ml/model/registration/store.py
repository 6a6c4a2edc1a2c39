"""MLflow's store of runs and models; a local store is created, migrated and updated here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import filelock
import mlflow
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from flywheel_ml.core.settings import Settings
from flywheel_ml.model.registration.alembic_paths import escape_percent
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import replacing

LOCK_SECONDS = 60
CONNECTION_RETRIES, RETRY_BACKOFF = 2, 1
_SQLITE = "sqlite:///"
_DEFAULT_ROOT = "mlruns"
"""Default artifact folder of MLflow; our experiments always set their own."""
_URI_CHARACTERS = set("%?#:'\"\\")
_PATHS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""Columns in which MLflow stores absolute paths of a local store."""


@contextmanager
def open_store(settings: Settings) -> Iterator[MlflowClient]:
    """Open a client of the store while no other process of this project opens it.

    A local store is created or migrated first, and its paths are updated after its folder moved.

    Raises:
        ConfigError: the tracking URI cannot be used.
    """
    uri = settings.tracking_uri
    # By default, MLflow retries an unavailable server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(CONNECTION_RETRIES))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", str(RETRY_BACKOFF))
    # MLflow uses this URI to resolve `models:/` and `runs:/` addresses.
    mlflow.set_tracking_uri(uri)
    escape_percent()
    try:
        with lock("mlflow-store", settings):
            if uri.startswith(_SQLITE):
                _create_store(Path(uri.removeprefix(_SQLITE)))
            elif uri.startswith(tuple(DATABASE_ENGINES)):
                _check_connection(uri)
            client = MlflowClient(uri, uri)
            if uri.startswith(_SQLITE) and "://" not in settings.artifact_root:
                _update_moved_paths(uri, to_location(settings.artifact_root))
            yield client
    except (MlflowException, sa.exc.SQLAlchemyError, ImportError, OSError) as error:
        raise ConfigError(
            f"ML_TRACKING_URI: '{settings.masked_tracking_uri}' cannot be used: {describe_error(error, settings)}"
        ) from None


def get_artifact_location(settings: Settings) -> str | None:
    """Return the artifact location of a new experiment; None if the store chooses it."""
    return to_location(settings.artifact_root) if settings.tracking_uri.startswith(_SQLITE) else None


def to_location(root: str) -> str:
    """Convert an artifact folder to a location for MLflow, which parses paths with special characters as URIs."""
    if "://" in root:
        return root
    path = Path(root).absolute()
    return path.as_uri() if set(str(path)) & _URI_CHARACTERS else str(path)


def _to_path(artifact_location: str) -> Path:
    """Convert a location of `to_location` back to a path."""
    parts = urlsplit(artifact_location)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(artifact_location)


def lock(name: str, settings: Settings) -> filelock.BaseFileLock:
    """Create a lock that one process of this project can hold at a time."""
    folder = settings.serving_folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f".{name}.lock", timeout=LOCK_SECONDS)


def describe_error(error: BaseException, settings: Settings) -> str:
    """Describe an error in one line without a password; for an unreachable server, use the system error."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    if (
        settings.has_tracking_server
        and isinstance(error, MlflowException)
        and isinstance(root, OSError)
        and root.strerror
    ):
        return f"no MLflow server answers: {root.strerror}"
    text = " ".join(str(error).replace(settings.tracking_uri, settings.masked_tracking_uri).split())
    return text[:300] or type(error).__name__


def _create_store(database: Path) -> None:
    """Create a store under a temporary name: a process killed during MLflow's migrations would leave it unusable."""
    if database.exists():
        return

    def disable_sync(connection: Any, _: Any) -> None:
        # Durability does not matter until the store is in place.
        connection.execute("PRAGMA synchronous=OFF")

    with replacing(database) as part:
        sa.event.listen(sa.Engine, "connect", disable_sync)
        try:
            # Use a relative path: parent folders may contain a `?`, which has a meaning in a URL.
            SqlAlchemyStore(f"{_SQLITE}{os.path.relpath(part)}", to_location(_DEFAULT_ROOT))
        finally:
            sa.event.remove(sa.Engine, "connect", disable_sync)


def _check_connection(uri: str) -> None:
    """Check once whether a database answers: MLflow would retry for a minute and a half."""
    engine = sa.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _update_moved_paths(uri: str, artifact_root: str) -> None:
    """Update the absolute paths that MLflow stores, after the project folder moved.

    In a store outside the project, which others may share, only paths that no longer exist are updated.
    """
    is_local = Path(uri.removeprefix(_SQLITE)).resolve().is_relative_to(Path.cwd())
    engine = sa.create_engine(uri)
    try:
        with engine.begin() as connection:
            query: sa.Select[Any] = (
                sa.select(sa.column("artifact_location")).select_from(sa.table("experiments")).distinct()
            )
            for old in connection.scalars(query).all():
                moved = old and _to_path(old).name == _to_path(artifact_root).name and old != artifact_root
                if moved and (is_local or not _to_path(old).exists()):
                    _replace_prefix(connection, old, artifact_root)
    finally:
        engine.dispose()


def _replace_prefix(connection: sa.Connection, old: str, new: str) -> None:
    for table, names in _PATHS.items():
        for column in [sa.column(name, sa.String()) for name in names]:
            moved = sa.literal(new) + sa.func.substr(column, len(old) + 1)
            begins = sa.or_(column == old, column.startswith(f"{old}/", autoescape=True))
            connection.execute(sa.update(sa.table(table, column)).where(begins).values({column.name: moved}))
