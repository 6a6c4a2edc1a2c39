"""Small tables that keep any contract, with a target that can be learnt."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

from << cookiecutter.package_name >>.contract import Column, Contract
from << cookiecutter.package_name >>.data.tables import DTYPES

START = datetime(2013, 1, 1, 5, 0)
DAYS = 120


def signals(contract: Contract) -> list[Column]:
    """The features that the target of `make` follows: those among the first columns."""
    return [column for column in contract.columns[:7] if column.role == "feature"]


def make(contract: Contract, rows: int, seed: int = 0) -> pl.DataFrame:
    """A table of `rows` rows over `DAYS` days; the target follows the first features, with noise."""
    rng = np.random.default_rng(seed)
    signal = np.zeros(rows)
    columns: dict[str, pl.Series] = {}
    for column in contract.columns:
        if column.role == "target":
            continue
        codes = rng.random(rows)
        columns[column.name] = _values(column, codes, rng)
        if column in signals(contract):
            signal += codes - 0.5
    likely = 1 / (1 + np.exp(-6 * signal + 1.0))
    columns[contract.target.name] = pl.Series(rng.random(rows) < likely)
    frame = pl.DataFrame({column.name: columns[column.name] for column in contract.columns})
    return frame.sort(contract.time.name) if contract.time else frame


def _values(column: Column, codes: np.ndarray, rng: np.random.Generator) -> pl.Series:
    rows = len(codes)
    if column.role == "id":
        series = pl.Series([f"row-{at:06d}" for at in range(rows)])
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
