"""Every estimator that params.yaml can name learns, and converts to ONNX without loss, on any kind of columns."""

from typing import Any, get_args

import numpy as np
import onnxruntime
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from << cookiecutter.package_name >> import strict
from << cookiecutter.package_name >>.contract import MISSING, Columns, Contract
from << cookiecutter.package_name >>.data import tables
from << cookiecutter.package_name >>.features import Featurizer
from << cookiecutter.package_name >>.model import estimators, package
from << cookiecutter.package_name >>.params import EstimatorName, Params

from .. import rows

NAMES = get_args(EstimatorName)


@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_learns_the_same_model_from_the_same_rows(
    name: EstimatorName, columns: Columns, table: pl.DataFrame, contract: Contract, params: Params
) -> None:
    featurizer = Featurizer(contract)
    frame = estimators.to_frame(featurizer.encode(columns))
    labels = table[contract.target.name].to_numpy()

    def fitted() -> np.ndarray:
        pipeline = estimators.build(name, params.train, featurizer, seed=params.seed).fit(frame, labels)
        scores: np.ndarray = pipeline.predict_proba(frame)[:, 1]
        return scores

    first = fitted()
    assert first[labels].mean() > first[~labels].mean() + 0.2
    assert first.tobytes() == fitted().tobytes()


def test_each_estimator_takes_its_parameters_and_the_seed(contract: Contract, params: Params) -> None:
    featurizer = Featurizer(contract)
    booster = estimators.build("hist_gradient_boosting", params.train, featurizer, seed=5)[-1]
    linear = estimators.build("logistic_regression", params.train, featurizer, seed=5)[-1]
    assert isinstance(booster, HistGradientBoostingClassifier)
    wanted = params.train.hist_gradient_boosting.model_dump()
    assert {name: booster.get_params()[name] for name in wanted} == wanted
    assert (booster.random_state, linear.random_state) == (5, 5)
    assert linear.C == params.train.logistic_regression.C


def test_native_categories_stay_off_for_they_convert_wrongly(
    table: pl.DataFrame, contract: Contract, params: Params
) -> None:
    featurizer = Featurizer(contract)
    frame = estimators.to_frame(featurizer.encode(tables.to_columns(table.head(200), contract.inputs)))
    pipeline = estimators.build("hist_gradient_boosting", params.train, featurizer, seed=0)
    assert pipeline.fit(frame, table.head(200)[contract.target.name].to_numpy())[-1].is_categorical_ is None


def test_the_frame_holds_float32_numbers_and_texts_by_position(columns: Columns, contract: Contract) -> None:
    featurizer = Featurizer(contract)
    frame = estimators.to_frame(featurizer.encode(columns))
    numeric, texts = len(featurizer.numeric), len(featurizer.categorical)
    assert frame.columns == [f"n{at}" for at in range(numeric)] + [f"c{at}" for at in range(texts)]
    assert frame.dtypes == [pl.Float32] * numeric + [pl.String] * texts


def test_missing_texts_are_a_category_of_their_own(contract: Contract, columns: Columns) -> None:
    featurizer = Featurizer(contract)
    if not featurizer.categorical:
        pytest.skip("the contract has no text columns")
    name = featurizer.categorical[0].name
    gaps = {**columns, name: np.full(len(columns[name]), None, dtype=object)}
    at = len(featurizer.numeric)
    assert set(estimators.to_frame(featurizer.encode(gaps)).to_series(at)) == {MISSING}


KINDS: dict[str, list[dict[str, Any]]] = {
    "numbers": [{"name": "x", "type": "float"}, {"name": "n", "type": "integer", "nullable": True}],
    "texts": [{"name": "a", "type": "string", "categories": ["p", "q"]}, {"name": "b", "type": "string"}],
    "booleans": [{"name": "x", "type": "boolean"}, {"name": "y", "type": "boolean", "nullable": True}],
    "moments": [{"name": "at", "type": "datetime"}, {"name": "x", "type": "float"}],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_one_kind_alone_train_and_convert(kind: str, name: EstimatorName, params: Params) -> None:
    columns = [
        {"name": "when", "type": "datetime", "role": "ignored"},
        *KINDS[kind],
        {"name": "target", "type": "boolean", "role": "target"},
    ]
    contract = strict.parse({"name": kind, "columns": columns}, Contract, kind)
    table = rows.make(contract, 400)
    featurizer = Featurizer(contract, derived=())
    inputs = featurizer.encode(tables.to_columns(table, contract.inputs))
    frame, labels = estimators.to_frame(inputs), table["target"].to_numpy()
    pipeline = estimators.build(name, params.train, featurizer, seed=0).fit(frame, labels)
    session = onnxruntime.InferenceSession(package.to_onnx(pipeline, featurizer))
    feeds = {feed.name: getattr(inputs, feed.name) for feed in session.get_inputs()}
    answers = session.run(None, feeds)[0][:, 1]
    assert np.abs(answers - pipeline.predict_proba(frame)[:, 1]).max() < 1e-5
    assert answers.std() > 0
