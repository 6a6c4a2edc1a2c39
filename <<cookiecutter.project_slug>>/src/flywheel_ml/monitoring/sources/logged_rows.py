"""Reads rows of the prediction log into chunks, and counts them."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Columns, Contract, columns_from_rows, to_array
from flywheel_ml.monitoring.window import Chunk, Window, collect, count_chunk, name_slices
from flywheel_ml.prediction_log import LoggedPrediction, Prediction, Reader
from flywheel_ml.prediction_log.values import parse_label, parse_output
from flywheel_ml.utils.threads import count_threads, map_in_order

CHUNK_ROWS = 20_000
SOURCE, CLOCK = "prediction log", "time of the prediction (UTC)"
_DTYPES = {
    "float": pl.Float64,
    "integer": pl.Float64,
    "boolean": pl.Boolean,
    "string": pl.String,
    "datetime": pl.String,
}
_ISO = "%Y-%m-%dT%H:%M:%S%.f"


def from_log(
    reader: Reader,
    bundle: Bundle,
    slices: Sequence[str] = (),
    since_us: int = 0,
    until_us: int | None = None,
    model_version: str | None = None,
    model_digest: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Window:
    """Count logged predictions with since ≤ time < until, of one model or of all.

    Args:
        reader: the log.
        bundle: the model whose reference defines the bins.
        slices: columns by whose values quality is reported.
        since_us, until_us: microseconds since 1970, UTC.
        model_version, model_digest: only predictions of this model, as in `Reader.predictions`.
        chunk_rows: rows held in memory at once, for each thread.
    """
    logged = reader.predictions(since_us, until_us, model_version, model_digest=model_digest)
    return count_logged(logged, bundle, slices, chunk_rows)


def count_logged(
    logged: Iterator[LoggedPrediction], bundle: Bundle, slices: Sequence[str] = (), chunk_rows: int = CHUNK_ROWS
) -> Window:
    """Count logged predictions of one model in the bins of its reference."""
    names, threads = name_slices(bundle.contract, slices), count_threads()

    def count(rows: Sequence[LoggedPrediction]) -> Window:
        return count_chunk(read_logged(rows, bundle), bundle, names, SOURCE, CLOCK)

    chunks = iter(lambda: list(itertools.islice(logged, chunk_rows)), [])
    with ThreadPoolExecutor(threads) as pool:
        return collect(map_in_order(pool, count, chunks, threads), bundle, names, SOURCE, CLOCK)


def read_logged(rows: Sequence[LoggedPrediction], bundle: Bundle) -> Chunk:
    """Convert logged predictions of one model to a chunk."""
    predictions, contract = [row.prediction for row in rows], bundle.contract
    return Chunk(
        columns=read_inputs([p.inputs for p in predictions], contract.inputs),
        scores=np.array([p.score for p in predictions], dtype=np.float64),
        output=_read_output(rows, contract),
        truth=np.array([parse_label(row.label, contract) for row in rows], dtype=np.float64),
        times=np.array([p.timestamp_us for p in predictions], dtype="datetime64[us]"),
        versions=np.array([p.model_version for p in predictions], dtype=object),
        degraded=np.array([p.degraded for p in predictions], dtype=bool),
        rows_without_digest=sum(p.model_digest is None for p in predictions),
        variants=np.array([p.variant for p in predictions], dtype=object),
        delays=np.array([_compute_delay(row) for row in rows], dtype=np.float64),
    )


def read_inputs(texts: Sequence[str], columns: Sequence[Column]) -> Columns:
    """Convert the logged inputs of n rows, JSON texts, to `Columns`; an absent key counts as missing."""
    if not columns:
        return {}
    schema = pl.Struct({column.name: _DTYPES[column.type] for column in columns})
    try:
        # A quarter of the time of json.loads and of a list for each column.
        frame = pl.Series(texts, dtype=pl.String).str.json_decode(schema).struct.unnest()
    except pl.exceptions.ComputeError:  # Rows of another contract may have values of another type.
        return columns_from_rows(columns, [json.loads(text) for text in texts])
    return {column.name: _to_array(frame[column.name], column) for column in columns}


def _to_array(series: pl.Series, column: Column) -> np.ndarray:
    if column.is_numeric:
        numbers: np.ndarray = series.cast(pl.Float64).fill_null(math.nan).to_numpy()
        return numbers
    if column.type == "string":
        texts: np.ndarray = series.to_numpy()
        return texts
    times = series.str.to_datetime(_ISO, time_unit="us", strict=False, ambiguous="null")
    array: np.ndarray = times.to_numpy().copy()
    if len(unusual := (times.is_null() & series.is_not_null()).arg_true()):
        array[unusual.to_numpy()] = to_array(column, series.gather(unusual).to_list())
    return array


def _compute_delay(row: LoggedPrediction) -> float:
    """Return the seconds from a prediction to its label's arrival; NaN if it has not arrived or its time is unknown."""
    if row.label_row is None or row.label_row.arrived_us is None:
        return math.nan
    return (row.label_row.arrived_us - row.prediction.timestamp_us) / 1e6


def _read_output(rows: Sequence[LoggedPrediction], contract: Contract) -> np.ndarray:
    """Read the outputs [n_rows, k] of labelled rows; the others stay NaN."""
    output = np.full((len(rows), len(contract.classes) or 3), np.nan)
    if contract.task == "binary":
        scores = np.array([row.prediction.score if row.label is not None else np.nan for row in rows], dtype=np.float32)
        output[:, 0], output[:, 1] = 1 - scores, scores
        return output
    for at, row in enumerate(rows):
        if row.label is not None:
            output[at] = parse_output(row.prediction, contract)
    return output


def without_labels(predictions: Iterable[Prediction]) -> Iterator[LoggedPrediction]:
    """Treat predictions as unlabelled."""
    return (LoggedPrediction(prediction, None) for prediction in predictions)
