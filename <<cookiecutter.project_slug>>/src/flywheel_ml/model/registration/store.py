"""MLflow's store: where runs and models are kept, made and mended where it is this project's own."""

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
"""Where MLflow keeps the files of experiments that say nothing else; of ours none does."""
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
    """A client of the store, while no other process of this project opens it.

    A local one is made first, migrated, or mended after its folder moved.

    Raises:
        ConfigError: the tracking URI cannot be used.
    """
    uri = settings.tracking_uri
    # Left alone, MLflow tries a server that is not there for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(CONNECTION_RETRIES))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", str(RETRY_BACKOFF))
    # Read by everything in MLflow that resolves `models:/` and `runs:/` addresses.
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
    """Where a new experiment's files go; None where the store decides that itself."""
    return to_location(settings.artifact_root) if settings.tracking_uri.startswith(_SQLITE) else None


def to_location(root: str) -> str:
    """A folder of artifacts as MLflow is to be told of it: it takes paths for URIs, but for the simplest of them."""
    if "://" in root:
        return root
    path = Path(root).absolute()
    return path.as_uri() if set(str(path)) & _URI_CHARACTERS else str(path)


def _to_path(artifact_location: str) -> Path:
    """The folder that `to_location` tells of."""
    parts = urlsplit(artifact_location)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(artifact_location)


def lock(name: str, settings: Settings) -> filelock.BaseFileLock:
    """What only one process of this project may do at a time."""
    folder = settings.serving_folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f".{name}.lock", timeout=LOCK_SECONDS)


def describe_error(error: BaseException, settings: Settings) -> str:
    """What went wrong, in one line without a password; of a server that cannot be reached, what the system says."""
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
    """A new store is built beside its place: a process killed amid MLflow's migrations would leave one of no use."""
    if database.exists():
        return

    def hasten(connection: Any, _: Any) -> None:
        # Until it is in place, there is nothing to lose to a power cut.
        connection.execute("PRAGMA synchronous=OFF")

    with replacing(database) as part:
        sa.event.listen(sa.Engine, "connect", hasten)
        try:
            # By its path from here: an address has other uses for a `?`, which the folders above may have.
            SqlAlchemyStore(f"{_SQLITE}{os.path.relpath(part)}", to_location(_DEFAULT_ROOT))
        finally:
            sa.event.remove(sa.Engine, "connect", hasten)


def _check_connection(uri: str) -> None:
    """See once whether a database answers: MLflow would ask it for a minute and a half."""
    engine = sa.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _update_moved_paths(uri: str, artifact_root: str) -> None:
    """MLflow stores absolute paths; where the project folder moved, put the new ones in their place.

    In a store outside the project, which others may share, only what is gone from its old place is touched.
    """
    own = Path(uri.removeprefix(_SQLITE)).resolve().is_relative_to(Path.cwd())
    engine = sa.create_engine(uri)
    try:
        with engine.begin() as connection:
            query: sa.Select[Any] = (
                sa.select(sa.column("artifact_location")).select_from(sa.table("experiments")).distinct()
            )
            for old in connection.scalars(query).all():
                moved = old and _to_path(old).name == _to_path(artifact_root).name and old != artifact_root
                if moved and (own or not _to_path(old).exists()):
                    _replace_prefix(connection, old, artifact_root)
    finally:
        engine.dispose()


def _replace_prefix(connection: sa.Connection, old: str, new: str) -> None:
    for table, names in _PATHS.items():
        for column in [sa.column(name, sa.String()) for name in names]:
            moved = sa.literal(new) + sa.func.substr(column, len(old) + 1)
            begins = sa.or_(column == old, column.startswith(f"{old}/", autoescape=True))
            connection.execute(sa.update(sa.table(table, column)).where(begins).values({column.name: moved}))
