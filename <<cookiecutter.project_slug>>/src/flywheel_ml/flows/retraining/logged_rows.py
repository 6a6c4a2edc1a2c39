"""Turns labelled rows of the prediction log into rows of the table."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from flywheel_ml.core.contract import Column, Contract, columns_from_rows
from flywheel_ml.data import tables
from flywheel_ml.data.validate import find_violations
from flywheel_ml.prediction_log import LoggedPrediction, Reader
from flywheel_ml.utils.errors import ContractViolation


def read_labelled_rows(log: str, contract: Contract, table: pl.DataFrame, until: datetime | None) -> pl.DataFrame:
    """Read the labelled rows of the log that are later than the table and before `until`, as contract columns.

    With a time column, rows later than the table's last row are read, else all. A row that the table or a later
    prediction has too, by its id or else by all its inputs, is left out.

    Args:
        log: the prediction log, a folder or a URL.
        contract: the contract; a column that the log lacks is empty, a weight is 1.
        table: the rows before `until` that the table has.
        until: end of the rows, on the clock of the time column.

    Raises:
        ContractViolation: the rows break the contract.
    """
    found = _to_frame(Reader(log).labelled(), contract)
    if contract.time is not None:
        time, last = pl.col(contract.time.name), table[contract.time.name].max()
        found = found.filter((time > last) if last is not None else pl.lit(value=True))
        found = found.filter(time < until) if until is not None else found
    keys = [contract.id.name] if contract.id is not None else [column.name for column in contract.inputs]
    found = found.unique(keys, keep="last", maintain_order=True)
    known = table.select(keys).unique()
    rows = found.join(known, on=keys, how="anti", nulls_equal=True)
    if not rows.is_empty() and (violations := find_violations(rows, contract)):
        raise ContractViolation(
            f"labelled rows of the prediction log break contract.yaml ({violations[0]}); "
            "correct their labels or the contract, or retrain without WITH_LOG"
        )
    return rows


def _to_frame(logged: Iterable[LoggedPrediction], contract: Contract) -> pl.DataFrame:
    """Convert logged predictions to contract columns, in the order of their predictions."""
    found = sorted((one for one in logged if one.label is not None), key=lambda one: one.prediction.timestamp_us)
    columns = columns_from_rows(contract.columns, [_to_row(one, contract) for one in found])
    frame = pl.DataFrame([_to_series(columns[column.name], column) for column in contract.columns])
    # An integer id cannot be made up.
    return frame.drop_nulls(contract.id.name) if contract.id is not None else frame


def _to_row(logged: LoggedPrediction, contract: Contract) -> Mapping[str, Any]:
    row: dict[str, Any] = json.loads(logged.prediction.inputs)
    row[contract.target.name] = json.loads(logged.label or "null")
    if contract.id is not None and row.get(contract.id.name) is None and contract.id.type == "string":
        row[contract.id.name] = logged.prediction.entity_id or logged.prediction.id
    if contract.weight is not None and row.get(contract.weight.name) is None:
        row[contract.weight.name] = 1.0
    return row


def _to_series(values: np.ndarray, column: Column) -> pl.Series:
    if column.type == "string":
        return pl.Series(column.name, values.tolist(), dtype=pl.String)
    return pl.Series(column.name, values, nan_to_null=column.is_numeric).cast(tables.DTYPES[column.type])
