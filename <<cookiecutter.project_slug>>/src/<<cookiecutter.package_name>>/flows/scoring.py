"""Batch scoring: a table in, a table with predictions out, in pieces, through the bundle that serves."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl
import pyarrow.parquet as pq

from .. import prediction_log
from ..bundle import Bundle
from ..contract import Column, Contract
from ..data import tables
from ..errors import DataError, ProjectError
from ..files import replacing
from ..params import ScoreParams
from ..prediction_log import Job, Writer
from ..serving import routing
from ..settings import Settings
from ..strict import nearest
from . import engine

PREDICTION, SCORE, VERSION = "prediction", "score", "model_version"
ADDED = (PREDICTION, SCORE, VERSION)
AHEAD = 2
"""Pieces read ahead of the model, and written behind it."""

T = TypeVar("T")


class Scored(NamedTuple):
    """A finished job."""

    job: str
    rows: int
    seconds: float
    model_version: str


def champion(settings: Settings) -> tuple[str, Bundle]:
    """Version and verified bundle that the serving folder calls champion.

    Raises:
        ProjectError: nothing is rolled out.
    """
    now = routing.read(settings.serving_folder)
    if now.champion is None:
        raise ProjectError("the serving folder has no champion; run the training flow first")
    path = routing.bundle_folder(settings.serving_folder, now.champion)
    return now.champion.version, Bundle.open(path, now.champion.digest)


def score(
    source: Path, output: Path, settings: Settings, params: ScoreParams, advance: Callable[[int], object] = int
) -> Scored:
    """Score a Parquet or CSV file into a Parquet file, whole or not at all; one log row records the job.

    The output has the input's columns and `prediction`, `score` (probability of the positive class) and
    `model_version`. Memory does not grow with the rows. A row gets the same bits as from the API.

    Args:
        advance: called with the number of rows after each piece.

    Raises:
        DataError: the input cannot be read, misses a column, or holds values of another type.
    """
    if output.suffix != ".parquet":
        raise DataError(f"OUTPUT: '{output}' must end in .parquet")
    if output.resolve() == source.resolve():
        raise DataError(f"OUTPUT: '{output}' is the input; name another file")
    version, opened = champion(settings)
    start = time.perf_counter()
    rows = engine.task("score", _write, source, output, opened, version, params.chunk_rows, advance)
    seconds = time.perf_counter() - start
    job = Job(prediction_log.new_id(), prediction_log.now_us(), version, str(source), str(output), rows, seconds)
    with Writer(settings.prediction_log, "batch", settings.log_synchronous) as log:
        log.append([job]).result()
    return Scored(job.id, rows, seconds, version)


def answer(chunk: pl.DataFrame, opened: Bundle, version: str) -> pl.DataFrame:
    """A piece of the table with its predictions beside it."""
    predictions = opened.predict(tables.to_columns(chunk, opened.contract.inputs))
    return chunk.with_columns(
        pl.Series(PREDICTION, predictions.values),
        pl.Series(SCORE, predictions.scores),
        pl.lit(version).alias(VERSION),
    )


def _write(
    source: Path, output: Path, opened: Bundle, version: str, chunk_rows: int, advance: Callable[[int], object]
) -> int:
    rows = 0
    with replacing(output) as part, ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
        writer: pq.ParquetWriter | None = None
        pending = writing.submit(int)
        try:
            # The model runs without the interpreter's lock: reading and writing cost little beside it.
            for chunk in _ahead(_checked(source, opened.contract, chunk_rows), reading):
                table = answer(chunk, opened, version).to_arrow()
                pending.result()
                writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
                pending = writing.submit(writer.write_table, table)
                rows += chunk.height
                advance(chunk.height)
            pending.result()
        finally:
            if writer is not None:
                writer.close()
    return rows


def _checked(source: Path, contract: Contract, chunk_rows: int) -> Iterator[pl.DataFrame]:
    at = 0
    for chunk in tables.chunks(source, contract, chunk_rows):
        for column in contract.inputs:
            if column.name not in chunk.columns:
                raise DataError(f"{source} has no column '{column.name}'; {nearest(column.name, chunk.columns)}")
        if taken := [name for name in ADDED if name in chunk.columns]:
            raise DataError(f"{source} has a column '{taken[0]}' already, which scoring adds; rename it")
        for column in contract.columns:
            if column.name in chunk.columns and chunk.schema[column.name] != tables.DTYPES[column.type]:
                raise DataError(f"{source}: {_misfit(chunk[column.name], column, at)}")
        at += chunk.height
        yield chunk


def _misfit(series: pl.Series, column: Column, at: int) -> str:
    if series.dtype != pl.String:
        return f"column '{column.name}' has type {series.dtype}, the contract says {column.type}"
    row = tables.misfits(series, column).arg_true()[0]
    return f"column '{column.name}', row {at + row:,}: {series[row]!r} is not of type {column.type}"


def _ahead(items: Iterator[T], pool: ThreadPoolExecutor) -> Iterator[T]:
    """The same items, the next ones being made in `pool` while the present one is used."""
    end = object()
    waiting = [pool.submit(next, items, end) for _ in range(AHEAD)]
    while (item := waiting.pop(0).result()) is not end:
        waiting.append(pool.submit(next, items, end))
        yield item  # type: ignore[misc]
