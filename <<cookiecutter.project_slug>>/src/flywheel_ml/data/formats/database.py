"""Streams the rows of a SQL query to disk; the password of a URL is never shown."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import polars as pl

from flywheel_ml.utils.config_model import find_duplicates
from flywheel_ml.utils.databases import DEFAULT_DRIVERS
from flywheel_ml.utils.errors import DataError, ProjectError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

BATCH_ROWS = 50_000
_SECRETIVE = re.compile(r":.*@|password=", re.IGNORECASE)


def is_url(source: str) -> bool:
    """Whether a source is a URL, or is not a file and resembles a URL that may contain a password."""
    return "://" in source or (_SECRETIVE.search(source) is not None and not Path(source).exists())


def mask_password(source: str) -> str:
    """Return a URL without its password; any other source unchanged."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if not is_url(source):
        return source
    try:
        url = make_url(source)
    except (ArgumentError, ValueError):
        # In a malformed URL the position of the password is unknown.
        return f"{re.split('[:=@]', source)[0]}:…"
    return url.set(query={}).render_as_string(hide_password=True)


def scan_query(source: str, query: str, scratch: Path) -> pl.LazyFrame:
    """Copy the rows of `query` to Parquet files in `scratch`, batch by batch, and return a scan over them.

    Raises:
        DataError: the URL, the database or the query fails.
    """
    from sqlalchemy import create_engine, inspect, text

    url = _parse_url(source)
    with _translate_errors(source):
        engine = create_engine(url)
    try:
        with _translate_errors(source), engine.connect() as connection:
            if not query:
                tables = ", ".join(sorted(inspect(connection).get_table_names())[:12])
                raise DataError(
                    f'{mask_password(source)}: say which rows, with --query "select …"; tables: {tables or "none"}'
                )
            result = connection.execution_options(stream_results=True, yield_per=BATCH_ROWS).execute(text(query))
            if not result.returns_rows:
                raise DataError(f"the query gives no rows: {query[:60]!r}; start it with select")
            names = list(result.keys())
            if twice := find_duplicates(names):
                raise DataError(f"the query gives the column '{twice[0]}' twice; name its columns one by one")
            pieces: list[Path] = []
            # The size is repeated here: `yield_per` alone makes partitions of one row each.
            for batch in result.partitions(BATCH_ROWS):
                pieces.append(scratch / f"rows-{len(pieces):05d}.parquet")
                _to_frame(names, batch).write_parquet(pieces[-1], compression="lz4")
    finally:
        engine.dispose()
    if not pieces:
        raise DataError(f"the query gives no rows: {query[:60]!r}; there is nothing to read")
    # Pieces may differ in type: a column of a piece that is all null, or a column that holds numbers and texts.
    return pl.concat([pl.scan_parquet(piece) for piece in pieces], how="vertical_relaxed")


def _to_frame(names: Sequence[str], rows: Sequence[Any]) -> pl.DataFrame:
    # Polars panics at PostgreSQL's NUMERIC 'NaN'; the contract's numbers are floats anyway.
    plain = [tuple(float(cell) if isinstance(cell, Decimal) else cell for cell in row) for row in rows]
    frame = pl.DataFrame(plain, names, orient="row", infer_schema_length=None, strict=False)
    return frame.select(_to_storable(column) for column in frame.iter_columns())


def _to_storable(column: pl.Series) -> pl.Series:
    """Convert a column to a type that Parquet can store, the same in every batch."""
    if column.dtype.is_nested():
        # Dropped later, like everything nested; its type may differ between batches.
        return pl.Series(column.name, [None] * len(column), dtype=pl.Binary)
    if column.dtype == pl.Object:
        # UUIDs, addresses and the like.
        return pl.Series(column.name, [None if value is None else str(value) for value in column], dtype=pl.String)
    return column


def _parse_url(source: str) -> "URL":
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(source)
    except (ArgumentError, ValueError):
        raise DataError(
            f"{mask_password(source)} is not a database URL; write postgresql://user:password@host/database or sqlite:///file"
        ) from None
    if url.drivername in ("http", "https", "ftp", "s3", "gs", "az", "file"):
        raise DataError(f"{mask_password(source)} is not a database; download the file and give its path")
    if url.drivername == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise DataError(
            f"{mask_password(source)}: the file '{url.database}' does not exist; an absolute path has four slashes"
        )
    return url.set(drivername=DEFAULT_DRIVERS.get(url.drivername, url.drivername))


@contextmanager
def _translate_errors(source: str) -> Iterator[None]:
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        package = error.name if isinstance(error, ModuleNotFoundError) else ""
        remedy = f"uv add --group train {package}" if package else "known: postgresql, sqlite and SQLAlchemy's others"
        raise DataError(
            f"{mask_password(source)}: no driver for this kind of database is installed; {remedy}"
        ) from None
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise DataError(f"{mask_password(source)}: {_redact_error(cause, source)}") from None
    except (ProjectError, OSError, pl.exceptions.PolarsError):
        raise
    except Exception as error:
        # A bug of the driver; its traceback would be saved to a file and may contain the URL.
        raise DataError(
            f"{mask_password(source)}: unexpected {type(error).__name__}: {_redact_error(error, source)}"
        ) from None


def _redact_error(error: BaseException, source: str) -> str:
    """Return an error's text in one line, without the URL and its secrets, however they are encoded."""
    from sqlalchemy.engine import make_url

    url = make_url(source)
    given = [url.password, *(value for key, value in url.query.items() if "pass" in key.lower())]
    secrets = {str(secret) for secret in given if secret}
    written = {source, url.render_as_string(hide_password=False)}
    message = " ".join(str(error).split())
    for secret in sorted({*written, *secrets, *map(quote, secrets), *map(quote_plus, secrets)}, key=len, reverse=True):
        message = message.replace(secret, "***")
    return message[:300]
