"""Every estimator that params.yaml can name learns, and converts to ONNX without loss, on any kind of columns."""

from typing import Any, get_args

import numpy as np
import onnxruntime
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from flywheel_ml.core import metrics
from flywheel_ml.core.catalog import STANDARD_ESTIMATORS, list_estimators
from flywheel_ml.core.contract import MISSING, Columns, Contract, Task
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.packaging import package
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.model.pipelines.estimators import Rows
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from library.helpers import rows

TARGETS: dict[Task, dict[str, Any]] = {
    "binary": {"type": "boolean"},
    "multiclass": {"type": "string", "categories": ["low", "middle", "high"]},
    "regression": {"type": "float", "range": [-50, 1000]},
}
PAIRS = [(name, task) for task in get_args(Task) for name in list_estimators(STANDARD_ESTIMATORS, task)]


def contract_of(task: Task, *columns: dict[str, Any]) -> Contract:
    return config_model.parse(
        {"name": task, "columns": [*columns, {"name": "target", "role": "target", **TARGETS[task]}]}, Contract, task
    )


def fit(name: str, contract: Contract, table: pl.DataFrame, params: Params) -> Any:
    featurizer = Featurizer(contract)
    frame = estimators.to_frame(featurizer.encode(tables.to_columns(table, contract.inputs)))
    pipeline = estimators.build(name, contract.task, params.train, featurizer, params.seed)
    return estimators.fit_model(pipeline, Rows(frame, tables.encode_target(table, contract)), contract.task)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_an_estimator_learns_the_same_model_from_the_same_rows(name: str, task: Task, params: Params) -> None:
    contract = contract_of(task, *KINDS["numbers"], *KINDS["texts"])
    table = rows.make_table(contract, 1500)
    truth = tables.encode_target(table, contract)
    shares = np.bincount(truth.astype(int)) / 1500 if contract.classes else [truth.mean()]
    prior = np.tile(shares, (1500, 1))

    def answers() -> np.ndarray:
        pipeline = fit(name, contract, table, params)
        frame = estimators.to_frame(Featurizer(contract).encode(tables.to_columns(table, contract.inputs)))
        return estimators.predict(pipeline, frame, task)

    def loss(found: np.ndarray) -> float:
        return metrics.compute_metrics(
            task, truth, evaluate.add_interval(found, None if contract.classes else 1.0), metrics.DecisionRule(0.5)
        )[metrics.LOSS[task]]

    first = answers()
    assert loss(first) < (0.95 if name == "regularized_boosting" else 0.9) * loss(prior)
    assert first.tobytes() == answers().tobytes()


def test_estimator_of_another_task_is_rejected_with_choices(contract: Contract, params: Params) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'ridge' is not for binary, .*choose from logistic_regression, spline_logistic_regression",
    ):
        estimators.build("ridge", "binary", params.train, Featurizer(contract), seed=0)


def test_each_estimator_takes_its_parameters_and_the_seed(contract: Contract, params: Params) -> None:
    featurizer = Featurizer(contract)
    booster = estimators.build("hist_gradient_boosting", "binary", params.train, featurizer, seed=5)[-1]
    linear = estimators.build("logistic_regression", "binary", params.train, featurizer, seed=5)[-1]
    assert isinstance(booster, HistGradientBoostingClassifier)
    wanted = params.train.hist_gradient_boosting.settings
    assert {name: booster.get_params()[name] for name in wanted} == wanted
    assert (booster.random_state, linear.random_state) == (5, 5)
    assert linear.C == params.train.logistic_regression.C


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


@pytest.mark.parametrize(("name", "task"), PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_one_kind_alone_train_and_convert(kind: str, name: str, task: Task, params: Params) -> None:
    contract = contract_of(task, {"name": "when", "type": "datetime", "role": "ignored"}, *KINDS[kind])
    table = rows.make_table(contract, 400)
    pipeline = fit(name, contract, table, params)
    featurizer = Featurizer(contract)
    inputs = featurizer.encode(tables.to_columns(table, contract.inputs))
    session = onnxruntime.InferenceSession(package.to_onnx(pipeline, featurizer))
    (output,) = session.get_outputs()
    feeds = {feed.name: getattr(inputs, feed.name) for feed in session.get_inputs()}
    answers = session.run([output.name], feeds)[0]
    frame = estimators.to_frame(inputs)
    wanted = estimators.predict(pipeline, frame, task)
    assert np.abs(answers - wanted).max() < 1e-6 * max(1.0, np.abs(wanted).max()) * 10
    assert answers.std() > 0


@pytest.mark.parametrize("task", get_args(Task))
def test_split_between_neighbouring_floats_matches_scikit_learn(task: Task, params: Params) -> None:
    contract = contract_of(task, {"name": "x", "type": "float"})
    below = np.linspace(1, 9, 40, dtype=np.float32)
    pairs = np.stack((below, np.nextafter(below, np.float32(np.inf))), axis=1)
    x = np.repeat(pairs.ravel().astype(np.float64), 25)
    # The upper one of each pair is another kind of row than the lower one.
    upper = np.tile(np.repeat([False, True], 25), 40)
    target = contract.target
    values = (
        np.where(upper, 1000.0, 0.0)
        if not contract.classes
        else np.array(contract.classes, dtype=object)[upper.astype(int)]
    )
    table = pl.DataFrame({"x": x, "target": pl.Series(values.tolist(), dtype=tables.DTYPES[target.type])})
    if task == "multiclass":
        table = pl.concat([table, pl.DataFrame({"x": [99.0] * 30, "target": ["high"] * 30})])
    thorough = params.train.hist_gradient_boosting.model_copy(
        update={"max_iter": 30, "max_leaf_nodes": 200, "min_samples_leaf": 5}
    )
    chosen = params.model_copy(update={"train": params.train.model_copy(update={"hist_gradient_boosting": thorough})})
    pipeline = fit("hist_gradient_boosting", contract, table, chosen)
    featurizer = Featurizer(contract)
    inputs = featurizer.encode(tables.to_columns(table, contract.inputs))
    session = onnxruntime.InferenceSession(package.to_onnx(pipeline, featurizer))
    answers = session.run(None, {"num": inputs.num})[0]
    frame = estimators.to_frame(inputs)
    wanted = estimators.predict(pipeline, frame, task)
    assert np.abs(answers - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())
    assert answers.std() > 0.2 * (1 if contract.classes else 1000)
