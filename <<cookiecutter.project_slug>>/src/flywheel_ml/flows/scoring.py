"""Batch scoring: reads a table in chunks, predicts with the champion, and writes a table with predictions."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_ml import prediction_log
from flywheel_ml.core.bundle import Bundle, Predictions
from flywheel_ml.core.contract import SCORE_COLUMNS, Column, Contract
from flywheel_ml.core.params import ScoreParams
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.data.adoption import columns
from flywheel_ml.data.checks import build_checks
from flywheel_ml.flows.bundles import open_champion
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.prediction_log import Job, Writer
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import DataError
from flywheel_ml.utils.files import replacing
from flywheel_ml.utils.threads import count_threads, map_in_order

PREDICTION, SCORE, PROBABILITIES, LOW, HIGH, VERSION = SCORE_COLUMNS
ROWS = "rows"


class ScoringResult(NamedTuple):
    """A finished job; `violations` has the number of rows that break each rule of the contract."""

    job: str
    rows: int
    seconds: float
    model_version: str
    violations: dict[str, int]


def score(
    project: Project,
    source: Path,
    output: Path,
    settings: Settings,
    params: ScoreParams,
    advance: Callable[[int], object] = int,
) -> ScoringResult:
    """Score a table of any format that `adopt` reads, and write a Parquet file atomically; one log row records the job.

    The output has the input's columns and `prediction`, `score` (see `Predictions`) and `model_version`; for more
    than two classes also `probabilities`, for regression `low` and `high`. Memory use does not grow with the rows.
    Each row gets exactly the same result as from the API. Rows that break the contract (out of range, unknown,
    missing) are still scored, and counted; so are rows of a file that lacks a nullable column.

    Args:
        advance: called with the number of rows after each chunk.

    Raises:
        DataError: the input cannot be read, lacks a column, or has values of another type; or the output cannot be
            written.
    """
    _check_output(source, output)
    version, opened = open_champion(project, settings)
    # Opened first, so that a log that cannot be written is reported before the work starts.
    with Writer(settings.prediction_log, "batch", settings.log_synchronous) as log:
        start = time.perf_counter()
        broken = engine.task("score", score_to_file, source, output, opened, version, params.chunk_rows, advance)
        seconds = time.perf_counter() - start
        rows = broken.pop(ROWS)
        made = (prediction_log.new_id(), prediction_log.now_us(), version, opened.digest)
        job = Job(*made, str(source), str(output), rows, seconds)
        log.append([job]).result()
    return ScoringResult(job.id, rows, seconds, version, {rule: count for rule, count in broken.most_common() if count})


def count_violations(frame: pl.DataFrame, contract: Contract) -> dict[str, int]:
    """Count the rows that break each rule on the input columns that the frame has."""
    there = [column for column in contract.inputs if column.name in frame.columns]
    found = {f"{check.column.name}: {check.message}": check.broken.sum() for check in build_checks(there)}
    return frame.select(**found).to_dicts()[0]


def _check_output(source: Path, output: Path) -> None:
    if output.suffix != ".parquet":
        raise DataError(f"OUTPUT: '{output}' must end in .parquet")
    if output.resolve() == source.resolve():
        raise DataError(f"OUTPUT: '{output}' is the input; name another file")
    if output.is_dir():
        raise DataError(f"OUTPUT: '{output}' is a folder; name a file in it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"OUTPUT: the folder '{output.parent}' cannot be created: {error.strerror}") from None
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise DataError(f"OUTPUT: the folder '{output.parent}' is not writable")


def score_to_file(
    source: Path, output: Path, opened: Bundle, version: str, chunk_rows: int, advance: Callable[[int], object]
) -> Counter[str]:
    """Score all rows of a file; return their number under `ROWS`, and the number of violations of each rule."""
    found: Counter[str] = Counter()
    contract = opened.contract

    def predict_chunk(frame: pl.DataFrame) -> tuple[pa.Table, dict[str, int]]:
        absent = [column for column in contract.inputs if column.name not in frame.columns]
        nothing = [pl.lit(None, dtype=tables.DTYPES[column.type]).alias(column.name) for column in absent]
        predictions = opened.predict(tables.to_columns(frame.with_columns(*nothing), contract.inputs))
        broken = count_violations(frame, contract) | {
            f"{column.name}: the column is missing": frame.height
            for column in absent
            if column.name not in opened.unused
        }
        return add_predictions(frame, predictions, contract, version).to_arrow(), broken

    threads = count_threads()
    with replacing(output) as part, ThreadPoolExecutor(threads) as pool:
        writer: pq.ParquetWriter | None = None
        try:
            # This thread reads and writes in order; each worker thread scores one chunk at a time.
            for table, broken in map_in_order(
                pool, predict_chunk, _read_checked(source, opened, chunk_rows), threads + 1
            ):
                writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
                writer.write_table(table)
                found.update({ROWS: table.num_rows, **broken})
                advance(table.num_rows)
        finally:
            if writer is not None:
                writer.close()
    return found


def add_predictions(frame: pl.DataFrame, predictions: Predictions, contract: Contract, version: str) -> pl.DataFrame:
    """Add the prediction columns to the rows."""
    kind = tables.DTYPES[contract.target.type] if contract.classes else None
    found = [pl.Series(PREDICTION, predictions.values, dtype=kind), pl.Series(SCORE, predictions.scores)]
    if contract.task == "multiclass":
        found.append(pl.Series(PROBABILITIES, predictions.output))
    elif contract.task == "regression":
        found += [pl.Series(LOW, predictions.output[:, 1]), pl.Series(HIGH, predictions.output[:, 2])]
    return frame.with_columns(*found, pl.lit(version).alias(VERSION))


def _read_checked(source: Path, opened: Bundle, chunk_rows: int) -> Iterator[pl.DataFrame]:
    contract, at = opened.contract, 0
    needed = [column for column in contract.inputs if not column.nullable and column.name not in opened.unused]
    for chunk in _read_chunks(source, contract, chunk_rows):
        for column in needed:
            if column.name not in chunk.columns:
                raise DataError(f"{source} has no column '{column.name}'; {suggest(column.name, chunk.columns)}")
        if taken := [name for name in SCORE_COLUMNS if name in chunk.columns]:
            raise DataError(f"{source} already has a column '{taken[0]}', which scoring adds; rename it")
        for column in contract.columns:
            if column.name in chunk.columns and chunk.schema[column.name] != tables.DTYPES[column.type]:
                raise DataError(f"{source}: {_describe_misfit(chunk[column.name], column, at)}")
        at += chunk.height
        yield chunk


def _read_chunks(source: Path, contract: Contract, rows: int) -> Iterator[pl.DataFrame]:
    known = {column.name for column in contract.columns}
    for frame in tables.read_chunks(source, contract, rows):
        # Columns that `adopt` renamed get the same new names here.
        given = {old: new for old, new in columns.map_names(frame.columns).items() if new != old and new in known}
        yield tables.conform(frame.rename(given), contract) if given else frame


def _describe_misfit(series: pl.Series, column: Column, at: int) -> str:
    row = tables.find_misfits(series, column).arg_true()[0]
    why = tables.describe_misfit(series[row], column)
    if series.dtype != pl.String:
        return f"column '{column.name}' has type {series.dtype}, the contract says {column.type}; a value {why}"
    return f"column '{column.name}', row {at + row:,}: {series[row]!r} {why}"
