"""A contract with a column of every kind, so that data tests hold whatever table the project is about."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.utils import config_model
from library.helpers.orders import SHOP


@pytest.fixture(scope="session")
def shop() -> Contract:
    return config_model.parse(SHOP, Contract, "contract.yaml")


@pytest.fixture(scope="session")
def orders() -> pl.DataFrame:
    """100 rows that keep the contract `shop`, one a day from the first of January 2020 on."""
    rng = np.random.default_rng(0)
    n_rows = 100
    return pl.DataFrame(
        {
            "order": [f"o{at:03d}" for at in range(n_rows)],
            "placed": pl.Series(
                [datetime(2020, 1, 1) + timedelta(days=at) for at in range(n_rows)], dtype=pl.Datetime("us")
            ),
            "region": [("north", "south", "west")[at % 3] for at in range(n_rows)],
            "kind": [("new", "old")[at % 2] for at in range(n_rows)],
            "channel": [("web", "shop", None)[at % 3] for at in range(n_rows)],
            "amount": [None if at % 10 == 5 else float(rng.integers(0, 1000)) + 0.5 for at in range(n_rows)],
            "weight": [None if at % 10 == 6 else float(rng.normal()) for at in range(n_rows)],
            "items": [1 + at % 50 for at in range(n_rows)],
            "gift": [(True, False, None)[at % 3] for at in range(n_rows)],
            "buyer": [f"person {at}" for at in range(n_rows)],
            "returned": [at % 4 == 0 for at in range(n_rows)],
        }
    )
