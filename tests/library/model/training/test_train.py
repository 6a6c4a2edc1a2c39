"""Training is the same for the same rows, and stops where nothing can be learnt or where its input was changed."""

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.training import train
from flywheel_ml.utils.errors import DataError, IntegrityError
from flywheel_ml.utils.files import sha256_file


@pytest.mark.parametrize("label", [True, False])
def test_rows_of_one_class_are_rejected(table: pl.DataFrame, contract: Contract, params: Params, label: bool) -> None:
    target = contract.target.name
    with pytest.raises(DataError, match=f"none of the 50 training rows has the class {not label} of '{target}'"):
        train.train(table.head(50).with_columns(pl.lit(label).alias(target)), contract, params)


def test_the_prior_is_the_share_of_each_class(table: pl.DataFrame, contract: Contract, params: Params) -> None:
    fitted = train.train(table.head(400), contract, params)
    share = table.head(400)[contract.target.name].mean()
    assert fitted.prior == pytest.approx((1 - share, share))  # type: ignore[operator]


def test_the_baseline_is_linear_whatever_the_model_is(table: pl.DataFrame, contract: Contract, params: Params) -> None:
    fitted = train.train(table.head(400), contract, params)
    assert type(fitted.baseline[-1]).__name__ == "LogisticRegression"
    assert type(fitted.model[-1]).__name__ == "HistGradientBoostingClassifier"


def test_the_order_of_columns_in_the_table_does_not_matter(
    table: pl.DataFrame, contract: Contract, params: Params
) -> None:
    rows = table.head(600)
    columns = tables.to_columns(rows, contract.inputs)
    first = evaluate.predict(train.train(rows, contract, params).model, columns, contract)
    shuffled = rows.select(reversed(rows.columns))
    again = evaluate.predict(train.train(shuffled, contract, params).model, columns, contract)
    assert first.tobytes() == again.tobytes()


def test_columns_that_are_not_inputs_are_ignored(table: pl.DataFrame, contract: Contract, params: Params) -> None:
    rows = table.head(600)
    columns = tables.to_columns(rows, contract.inputs)
    first = evaluate.predict(train.train(rows, contract, params).model, columns, contract)
    others = [c.name for c in contract.columns if c not in (*contract.inputs, contract.target)]
    bent = rows.with_columns(pl.lit("leak").alias(name) for name in [*others, "one more"])
    again = evaluate.predict(train.train(bent, contract, params).model, columns, contract)
    assert first.tobytes() == again.tobytes()


def test_a_part_that_is_not_what_was_written_is_refused(
    table: pl.DataFrame, tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    path = paths.SPLITS["train"]
    tables.write(table.head(50), path)
    report = {"train": {"sha256": sha256_file(path)}}
    assert train.read_split("train", report).equals(table.head(50))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"train.parquet is not the file that its stage wrote"):
        train.read_split("train", report)


def test_gaps_and_unknown_categories_are_scored(table: pl.DataFrame, contract: Contract, params: Params) -> None:
    model = train.train(table.head(600), contract, params).model
    columns = tables.to_columns(table.head(10), contract.inputs)
    for column in contract.inputs:
        kind = columns[column.name].dtype.kind
        odd = np.full(10, "never seen" if kind == "O" else np.nan, dtype=columns[column.name].dtype)
        if kind != "M":
            assert np.isfinite(evaluate.predict(model, {**columns, column.name: odd}, contract)).all()
