"""A bundle, rows like its reference, and rows that are not."""

from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data.split import split
from library.helpers import rows


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def alike(table: pl.DataFrame, contract: Contract, params: Params) -> pl.DataFrame:
    """1,500 labelled rows drawn again from the rows that the model was tested on."""
    return split(table, contract, params.split, None)["test"].sample(1500, with_replacement=True, seed=1)


@pytest.fixture(scope="session")
def moved(contract: Contract) -> pl.DataFrame:
    """Labelled rows whose numbers all lie in the upper half of their range."""
    frame = rows.make_table(contract, 4000, seed=2)
    name = rows.find_column(contract, lambda column: column.is_numeric and column.type != "boolean", "number").name
    middle = frame[name].median()
    return frame.filter(pl.col(name) > middle)
