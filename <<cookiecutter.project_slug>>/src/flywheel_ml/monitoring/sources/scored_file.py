"""Counts a file that batch scoring wrote."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.data import tables
from flywheel_ml.monitoring.window import Chunk, Window, collect, count_chunk, name_slices
from flywheel_ml.utils.errors import DataError
from flywheel_ml.utils.threads import count_threads, map_in_order

CHUNK_ROWS = 150_000


def from_file(path: Path, bundle: Bundle, slices: Sequence[str] = (), chunk_rows: int = CHUNK_ROWS) -> Window:
    """Count a file that batch scoring wrote: the input columns, `score`, and the target column if labels are known.

    Args:
        path: the file.
        bundle: the model whose reference defines the bins.
        slices: columns by whose values quality is reported.
        chunk_rows: rows held in memory at once, for each thread.

    Raises:
        DataError: the file cannot be read, lacks a column, or has values of a different type than the contract says.
    """
    contract, names, threads = bundle.contract, name_slices(bundle.contract, slices), count_threads()
    source, clock = f"scored file {path.name}", contract.time.name if contract.time else ""

    def count(frame: pl.DataFrame) -> Window:
        return count_chunk(_read_scored(frame, contract, path), bundle, names, source, clock)

    with ThreadPoolExecutor(threads) as pool:
        parts = map_in_order(pool, count, tables.read_chunks(path, contract, chunk_rows), threads)
        return collect(parts, bundle, names, source, clock)


def _read_scored(frame: pl.DataFrame, contract: Contract, path: Path) -> Chunk:
    target = contract.target
    has_labels = target.name in frame.columns
    wanted = (*contract.inputs, target) if has_labels else contract.inputs
    if absent := [name for name in (*(c.name for c in contract.inputs), "score") if name not in frame.columns]:
        raise DataError(
            f"{path} has no column '{absent[0]}'; give a file that batch scoring wrote, with its input columns"
        )
    frame = frame.with_columns(
        pl.col(c.name).cast(tables.DTYPES[c.type]) for c in wanted if frame.schema[c.name] == pl.Null()
    )
    for column in wanted:
        found = frame.schema[column.name]
        if found != tables.DTYPES[column.type]:
            raise DataError(
                f"{path}: column '{column.name}' is {found} where the contract says {column.type}; score it again"
            )
    scores = frame["score"].cast(pl.Float32 if contract.classes else pl.Float64, strict=False)
    if contract.classes and not scores.is_between(0, 1).fill_null(value=False).all():
        raise DataError(f"{path}: column 'score' has values outside [0, 1]; score the table again")
    columns = tables.to_columns(frame, wanted)
    rows = frame.height
    return Chunk(
        columns={column.name: columns[column.name] for column in contract.inputs},
        scores=scores.to_numpy(),
        output=_read_scored_output(frame, contract, path)
        if has_labels
        else np.empty((rows, len(contract.classes) or 3)),
        truth=contract.encode_target(columns[target.name]) if has_labels else np.full(rows, np.nan),
        times=columns[contract.time.name] if contract.time else None,
        versions=_read_texts(frame, "model_version"),
        degraded=np.zeros(rows, dtype=bool),
    )


def _read_scored_output(frame: pl.DataFrame, contract: Contract, path: Path) -> np.ndarray:
    """Convert the columns that `flows/scoring.py` wrote to outputs [n_rows, k]."""
    wanted = {"binary": ["score"], "multiclass": ["probabilities"], "regression": ["prediction", "low", "high"]}
    if absent := [name for name in wanted[contract.task] if name not in frame.columns]:
        raise DataError(f"{path} has no column '{absent[0]}', which batch scoring adds; score the table again")
    output: np.ndarray
    if contract.task == "multiclass":
        output = np.array(frame["probabilities"].to_list(), dtype=np.float32).reshape(frame.height, -1)
        if output.shape[1] != len(contract.classes):
            raise DataError(f"{path}: column 'probabilities' does not have one number per class; score the table again")
        return output
    output = frame.select(pl.col(wanted[contract.task]).cast(pl.Float32 if contract.classes else pl.Float64)).to_numpy()
    return np.concatenate((1 - output, output), axis=1) if contract.task == "binary" else output


def _read_texts(frame: pl.DataFrame, name: str) -> np.ndarray:
    texts: np.ndarray = (
        frame[name].cast(pl.String).fill_null("unknown").to_numpy()
        if name in frame.columns
        else np.full(frame.height, "unknown", dtype=object)
    )
    return texts
