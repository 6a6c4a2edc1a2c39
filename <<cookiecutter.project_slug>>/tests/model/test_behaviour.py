"""What a model must do whatever its figures say: learn what can be learnt, ignore what must not matter."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.data import tables

from .. import conftest, rows


@pytest.fixture(scope="module")
def opened(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


def test_what_can_be_learnt_is_learnt(bundle_path: Path) -> None:
    """Minimum functionality: the table's target follows its first features."""
    metrics = bundle.verify(bundle_path).metrics
    assert metrics["test"]["roc_auc"] > 0.8
    assert metrics["test"]["log_loss"] < metrics["trivial"]["log_loss"] - 0.1
    assert metrics["test"]["calibration_error"] < 0.15


def test_clear_cases_are_answered_clearly(
    opened: Bundle, columns: Columns, table: pl.DataFrame, contract: Contract
) -> None:
    """Minimum functionality: among the surest answers nearly all are right."""
    scores, labels = opened.predict(columns).scores, table[contract.target.name].to_numpy()
    order = np.argsort(scores)
    tenth = len(order) // 10
    assert labels[order[-tenth:]].mean() > 0.9
    assert labels[order[:tenth]].mean() < 0.2


def test_the_order_of_rows_does_not_matter(opened: Bundle, columns: Columns) -> None:
    """Invariance."""
    order = np.random.default_rng(0).permutation(len(next(iter(columns.values()))))
    whole = opened.predict(columns).output
    shuffled = opened.predict({name: values[order] for name, values in columns.items()}).output
    assert conftest.same_bits(shuffled, whole[order])


def test_columns_that_are_no_inputs_do_not_matter(opened: Bundle, table: pl.DataFrame, contract: Contract) -> None:
    """Invariance: id, target, ignored columns and strangers may hold anything."""
    inputs = [column.name for column in contract.inputs]
    others = [name for name in table.columns if name not in inputs]
    bent = table.with_columns(pl.lit("anything").alias(name) for name in [*others, "a stranger"])
    whole = opened.predict(tables.to_columns(table, contract.inputs)).output
    assert conftest.same_bits(opened.predict(tables.to_columns(bent, contract.inputs)).output, whole)


def test_an_unknown_category_is_answered_like_any_other_unknown_one(
    opened: Bundle, columns: Columns, contract: Contract
) -> None:
    """Invariance: what training never saw cannot be told apart."""
    texts = [column.name for column in contract.inputs if column.type == "string"]
    if not texts:
        pytest.skip("the contract has no text columns")
    n_rows = len(columns[texts[0]])
    first, second = (
        opened.predict({**columns, texts[0]: np.full(n_rows, word, dtype=object)}).output
        for word in ("never seen", "nor this")
    )
    assert conftest.same_bits(first, second)


def test_the_answer_follows_each_signal_it_learnt_from(opened: Bundle, columns: Columns, contract: Contract) -> None:
    """Direction: the target's odds rise with each of the first features, so the mean answer does too."""
    numbers = [column for column in rows.signals(contract) if column.type in ("float", "integer")]
    if not numbers:
        pytest.skip("none of the first features is a number")
    n_rows = len(columns[numbers[0].name])
    means = {
        column.name: [
            float(opened.predict({**columns, column.name: np.full(n_rows, value)}).scores.mean())
            for value in np.quantile(columns[column.name][~np.isnan(columns[column.name])], (0.05, 0.95))
        ]
        for column in numbers
    }
    assert all(high > low for low, high in means.values()), means
