"""What a model of this contract must do whatever its metrics: ignore what must not matter, follow what it learned.

Model tests after Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP Models with CheckList".
"""

import numpy as np
import polars as pl
import pytest
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.data import tables
from flywheel_ml.testing import rows


def test_order_of_rows_does_not_matter(bundle: Bundle, columns: Columns) -> None:
    """Invariance."""
    order = np.random.default_rng(0).permutation(len(next(iter(columns.values()))))
    whole = bundle.predict(columns).output
    shuffled = bundle.predict({name: values[order] for name, values in columns.items()}).output
    np.testing.assert_array_equal(shuffled, whole[order])


def test_columns_that_are_no_inputs_do_not_matter(bundle: Bundle, table: pl.DataFrame, contract: Contract) -> None:
    """Invariance: id, target, ignored and unknown columns may hold anything."""
    inputs = [column.name for column in contract.inputs]
    others = [name for name in table.columns if name not in inputs]
    changed = table.with_columns(pl.lit("anything").alias(name) for name in [*others, "an unknown column"])
    expected = bundle.predict(tables.to_columns(table, contract.inputs)).output
    np.testing.assert_array_equal(bundle.predict(tables.to_columns(changed, contract.inputs)).output, expected)


def test_unknown_categories_are_predicted_alike(bundle: Bundle, columns: Columns, contract: Contract) -> None:
    """Invariance: a model cannot tell apart what training never saw."""
    texts = [column.name for column in contract.inputs if column.type == "string" and not column.free_text]
    if not texts:
        pytest.skip("the contract has no categories")
    n_rows = len(columns[texts[0]])
    first, second = (
        bundle.predict({**columns, texts[0]: np.full(n_rows, word, dtype=object)}).output
        for word in ("never seen", "nor this")
    )
    np.testing.assert_array_equal(first, second)


def test_prediction_follows_each_signal(bundle: Bundle, columns: Columns, contract: Contract) -> None:
    """Direction: the target of synthetic rows rises with the first features, so the mean prediction does too."""
    numbers = [column for column in rows.signal_columns(contract) if column.type in ("float", "integer")]
    if not numbers:
        pytest.skip("none of the first features is a number")

    def mean(name: str, value: float) -> float:
        output = bundle.predict({**columns, name: np.full(len(columns[name]), value)}).output
        if contract.task == "regression":
            return float(output[:, 0].mean())
        return float((output @ np.arange(output.shape[1])).mean())

    for column in numbers:
        low, high = np.nanquantile(columns[column.name].astype(np.float64), (0.05, 0.95))
        assert mean(column.name, high) > mean(column.name, low), column.name
