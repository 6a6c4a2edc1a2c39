"""Trees that split categories into sets answer in ONNX as in scikit-learn, and are taken where they are better."""

from typing import Any, get_args

import numpy as np
import onnxruntime
import polars as pl
import pytest

from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.model.packaging import package
from flywheel_ml.model.pipelines import estimators, preprocessing
from flywheel_ml.model.training import train
from flywheel_ml.model.training.selection import CandidateEstimator
from library.helpers import rows
from library.model.pipelines.test_estimators import contract_of

COLUMNS: list[dict[str, Any]] = [
    {"name": "x", "type": "float", "nullable": True},
    {"name": "two", "type": "string", "categories": ["a", "b"]},
    {
        "name": "some",
        "type": "string",
        "categories": [f"s{at}" for at in range(40)],
        "max_unknown_share": 0.1,
        "nullable": True,
    },
    {"name": "many", "type": "string", "categories": [f"m{at}" for at in range(250)]},
]


def plain(contract: Contract) -> Featurizer:
    return Featurizer(contract)


def settings(params: Params, way: str) -> Params:
    chosen = params.train.hist_gradient_boosting.model_copy(update={"categories": way})
    trained = params.train.model_copy(
        update={"hist_gradient_boosting": chosen, "sklearn_default": False, "calibration": "none"}
    )
    return params.model_copy(update={"train": trained})


def odd_or_even(contract: Contract, n_rows: int) -> pl.DataFrame:
    """Rows whose target depends only on whether the number in a category's name is odd."""
    table = rows.make_table(contract, n_rows)
    odd = table["some"].str.slice(1).cast(pl.Int64, strict=False).fill_null(0) % 2 == 1
    classes = contract.classes
    target = (
        pl.when(odd).then(pl.lit(classes[-1])).otherwise(pl.lit(classes[0]))
        if classes
        else 100.0 * odd.cast(pl.Float64)
    )
    others = pl.Series([classes[at % len(classes)] for at in range(n_rows)]) if classes else None
    table = table.with_columns(pl.select(target).to_series().cast(table.schema["target"]).alias("target"))
    if others is None:
        return table
    # A tenth of other answers, lest a class be without a row.
    return table.with_columns(pl.when(pl.int_range(n_rows) % 10 == 0).then(others).otherwise("target").alias("target"))


@pytest.mark.parametrize("task", get_args(Task))
def test_onnx_matches_scikit_learn_on_all_kinds_of_categories(task: Task, params: Params) -> None:
    contract = contract_of(task, *COLUMNS)
    table = odd_or_even(contract, 2000)
    unseen = table["some"].is_in(["s5", "s33"]) | table["many"].is_in(["m31", "m32", "m200"])
    learnt = table.filter(~unseen)
    fitted = train.train(learnt, contract, settings(params, "sets"))
    odd: dict[str, list[str | None]] = {
        "some": ["s5", "s33", None, "elsewhere", "s39"],
        "many": ["m0", "m31", "m32", "m200", "m249"],
    }
    asked = pl.concat([table, table.head(25).with_columns(pl.Series(name, values * 5) for name, values in odd.items())])

    featurizer = plain(contract)
    content = package.to_onnx(fitted.model, featurizer)
    assert content.count(b"BRANCH_EQ") > 20
    assert content == package.to_onnx(fitted.model, featurizer)
    inputs = featurizer.encode(tables.to_columns(asked, contract.inputs))
    session = onnxruntime.InferenceSession(content)
    feeds = {feed.name: getattr(inputs, feed.name) for feed in session.get_inputs()}
    (output,) = session.get_outputs()
    wanted = estimators.predict(fitted.model, estimators.to_frame(inputs), task)
    assert np.abs(session.run([output.name], feeds)[0] - wanted).max() < 1e-6 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("task", get_args(Task))
def test_sets_are_chosen_where_they_are_better(task: Task, params: Params) -> None:
    contract = contract_of(task, *COLUMNS)
    # About 15 rows of a category: fewer than a leaf takes, so positions in an order cannot be distinguished.
    table = odd_or_even(contract, 900)
    fitted = train.train(table[:600], contract, settings(params, "auto"), table[600:])
    assert fitted.selection.winner == CandidateEstimator("hist_gradient_boosting", sets=True)
    assert fitted.model[-1].is_categorical_.sum() == 2


@pytest.mark.parametrize(("way", "native"), [("sets", True), ("order", False)])
def test_params_decide_how_categories_are_split(way: str, native: bool, params: Params) -> None:
    contract = contract_of("binary", *COLUMNS)
    fitted = train.train(odd_or_even(contract, 300), contract, settings(params, way))
    assert [score.name for score in fitted.selection.scores] == [fitted.selection.winner.name]
    assert (fitted.model[-1].is_categorical_ is not None) is native


def test_too_many_categories_and_two_are_left_in_their_order() -> None:
    more = {"name": "more", "type": "string", "categories": [f"c{at}" for at in range(255)]}
    featurizer = plain(contract_of("binary", *COLUMNS, more))
    assert preprocessing.find_set_columns(featurizer) == [len(featurizer.numeric) + 1, len(featurizer.numeric) + 2]
