"""Synthetic tables that satisfy a contract, with a target that a model can learn."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.data.tables import DTYPES

START = datetime(2013, 1, 1, 5, 0)
DAYS = 120
MAX_THRESHOLDS = 4
"""Most classes that fixed thresholds of the signal separate; with more, the outer ones would stay empty."""


def signal_columns(contract: Contract) -> list[Column]:
    """The features that the target of `make` follows: those among the first columns."""
    return [column for column in contract.columns[:7] if column.role == "feature"]


def make_table(contract: Contract, rows: int, seed: int = 0) -> pl.DataFrame:
    """A table of `rows` rows over `DAYS` days; the target follows the first features, with noise."""
    rng = np.random.default_rng(seed)
    signal = np.zeros(rows)
    columns: dict[str, pl.Series] = {}
    for column in contract.columns:
        if column.role == "target":
            continue
        codes = rng.random(rows)
        columns[column.name] = _values(column, codes, rng)
        if column in signal_columns(contract):
            signal += codes - 0.5
    columns[contract.target.name] = _target(contract, 6 * signal - 1.0, rng)
    frame = pl.DataFrame({column.name: columns[column.name] for column in contract.columns})
    return frame.sort(contract.time.name) if contract.time else frame


def json_rows(frame: pl.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """Convert the input columns to rows of JSON values."""
    named = frame.select(column.name for column in contract.inputs)
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in named.to_dicts()
    ]


def _target(contract: Contract, signal: np.ndarray, rng: np.random.Generator) -> pl.Series:
    """Return values in the target's type that follow a signal [n_rows]."""
    target, classes = contract.target, contract.classes
    if not classes:
        low, high = target.range or (0.0, 100.0)
        values = low + (high - low) / (1 + np.exp(-(signal + rng.normal(size=len(signal)))))
        return pl.Series(values.round() if target.type == "integer" else values).cast(DTYPES[target.type])
    if len(classes) > MAX_THRESHOLDS:
        # By rank, so that all classes have the same number of rows.
        rank = np.argsort(np.argsort(signal + rng.logistic(size=len(signal))))
        return pl.Series([classes[at * len(classes) // len(signal)] for at in rank.tolist()], dtype=DTYPES[target.type])
    # A larger signal makes a later class more likely.
    steps = np.arange(1, len(classes)) * 2.0 - len(classes)
    chance = 1 / (1 + np.exp(-(signal[:, None] - steps)))
    place = (rng.random(len(signal))[:, None] < chance).sum(axis=1)
    return pl.Series([classes[at] for at in place.tolist()], dtype=DTYPES[target.type])


def _values(column: Column, codes: np.ndarray, rng: np.random.Generator) -> pl.Series:
    rows = len(codes)
    if column.role == "id":
        series = pl.Series(range(rows) if column.type == "integer" else [f"row-{at:06d}" for at in range(rows)])
    elif column.type == "datetime":
        minutes = np.sort(rng.integers(0, DAYS * 24 * 60, rows))
        series = pl.Series([START + timedelta(minutes=int(minute)) for minute in minutes])
    elif column.type == "string":
        names = np.array(column.categories or [f"value {at}" for at in range(12)], dtype=object)
        series = pl.Series(names[(codes * len(names)).astype(int)])
    elif column.type == "boolean":
        series = pl.Series(codes < 0.5)
    else:
        low, high = column.range or (0.0, 1.0)
        series = pl.Series(low + codes * (high - low))
        series = series.round() if column.type == "integer" else series
    series = series.cast(DTYPES[column.type])
    if column.nullable:
        gaps = pl.Series(rng.random(rows) < 0.05)
        series = pl.select(pl.when(~gaps).then(series)).to_series()
    return series
