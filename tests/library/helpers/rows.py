"""Synthetic tables, and the column of a contract that a test is about."""

from collections.abc import Callable

import pytest

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.testing.rows import DAYS, START, json_rows, make_table, signal_columns

__all__ = ["DAYS", "START", "find_column", "json_rows", "make_table", "signal_columns"]


def find_column(contract: Contract, wanted: Callable[[Column], bool], kind: str) -> Column:
    """Return the first input column with a property; skips the test if the contract has none."""
    found = next((column for column in contract.inputs if wanted(column)), None)
    if found is None:
        pytest.skip(f"the contract has no {kind}")
    return found
