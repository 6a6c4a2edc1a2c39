"""The estimators that params.yaml can name, each a scikit-learn pipeline that converts to ONNX.

A pipeline takes one frame: the numeric columns of `features.Inputs` first, then the categorical ones.
Columns are selected by position, which is what skl2onnx converts.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import numpy as np
import polars as pl
from joblib import parallel_config
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from ..contract import Task
from ..errors import ConfigError
from ..features import Featurizer, Inputs
from ..params import EstimatorName, HistGradientBoostingParams, TrainParams
from . import encoders, networks

YARDSTICK_CATEGORIES = encoders.SET_CATEGORIES - 5
"""Of a column; the rarer ones become one."""
YARDSTICK_STOPS_EARLY = 10_000
"""By itself it does so on more rows than these."""
BELOW_ALL = -1e30
"""What a missing number is for a forest: less than any other, hence a value of its own."""


class Rows(NamedTuple):
    """Model inputs as `to_frame` makes them, n_rows, and their target [n_rows]."""

    frame: pl.DataFrame
    labels: np.ndarray

    def only(self, places: np.ndarray) -> "Rows":
        """The rows at these places, int [n]."""
        return self if len(places) == len(self.labels) else Rows(self.frame[places], self.labels[places])


class Estimator(NamedTuple):
    """How an estimator is built, and the tasks that it is for."""

    build: Callable[[Task, TrainParams, Featurizer, int], Pipeline]
    tasks: tuple[Task, ...]


def build(name: EstimatorName, task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """An unfitted pipeline for the columns that `featurizer` makes.

    Raises:
        ConfigError: the estimator is none for this task.
    """
    known = choices(task)
    if name not in known:
        raise ConfigError(
            f"params.yaml: train.estimator '{name}' is not for {task}, which the target asks for; "
            f"choose one of {', '.join(known)}"
        )
    return ESTIMATORS[name].build(task, params, featurizer, seed)


def choices(task: Task) -> list[EstimatorName]:
    """The estimators that can be trained for a task."""
    return [name for name, estimator in ESTIMATORS.items() if task in estimator.tasks]


def fit(pipeline: Pipeline, frame: pl.DataFrame, labels: np.ndarray, validation: Rows | None = None) -> Pipeline:
    """Fit on all cores; how many there are changes nothing, for only what is independent runs side by side.

    Args:
        validation: where gradient boosting sees that it gains no more, if it is to stop early; without them it sets a
            tenth of the rows aside for that, drawn at random.
    """
    with warnings.catch_warnings(), parallel_config(backend="threading", n_jobs=-1):
        # How long it learns is a parameter; whether that was enough is for the gates to judge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for expected in encoders.EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected, UserWarning)
        if validation is None or not getattr(pipeline[-1], "early_stopping", False):
            pipeline.fit(frame, labels)
        else:
            columns, booster = pipeline
            inputs = columns.fit_transform(frame, labels)
            booster.fit(inputs, labels, X_val=columns.transform(validation.frame), y_val=validation.labels)
    return pipeline


def spread(labels: np.ndarray, n_rows: int, task: Task) -> np.ndarray:
    """Places of about `n_rows` rows, evenly spaced; the first of each class too, lest a rare one is left out."""
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), n_rows)).astype(np.intp)
    return chosen if task == "regression" else np.union1d(chosen, np.unique(labels, return_index=True)[1])


def answers(pipeline: Any, frame: pl.DataFrame, task: Task) -> np.ndarray:
    """What a pipeline answers, float: probabilities [n_rows, n_classes], or values [n_rows, 1]."""
    found: np.ndarray = pipeline.predict(frame)[:, None] if task == "regression" else pipeline.predict_proba(frame)
    return found


def yardstick(task: Task, featurizer: Featurizer, seed: int) -> Pipeline:
    """Scikit-learn's gradient boosting as it comes: default settings, and categories as categories.

    It sees the columns that the model sees, but for free texts. It is never served: its categories do not convert to
    ONNX.
    """
    numeric, listed, unlisted, _ = encoders.positions(featurizer)
    categorical = [*listed, *unlisted]
    places = [len(numeric) + at for at in range(len(categorical))]
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, max_categories=YARDSTICK_CATEGORIES, dtype=np.float32
    )
    estimator = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return make_pipeline(
        ColumnTransformer([("num", "passthrough", numeric), ("cat", encoder, categorical)]),
        estimator(categorical_features=places or None, random_state=seed),
    )


def is_yardstick(params: TrainParams, featurizer: Featurizer, n_rows: int) -> bool:
    """Whether the model and the yardstick are one and the same, so that fitting one of them is enough."""
    # On more rows it stops early by rows that it draws itself, the model by the validation rows.
    return (
        params.estimator == "hist_gradient_boosting"
        and not featurizer.categorical
        and n_rows <= YARDSTICK_STOPS_EARLY
        and params.hist_gradient_boosting.settings == HistGradientBoostingParams().settings
    )


def may_split_into_sets(params: TrainParams, featurizer: Featurizer) -> bool:
    """Whether the validation rows are to say how trees split categories."""
    left_open = params.hist_gradient_boosting.categories == "auto"
    return params.estimator == "hist_gradient_boosting" and left_open and bool(encoders.sets(featurizer))


def splitting_into_sets(params: TrainParams) -> TrainParams:
    """The same parameters, but that trees split categories into sets."""
    chosen = params.hist_gradient_boosting.model_copy(update={"categories": "sets"})
    return params.model_copy(update={"hist_gradient_boosting": chosen})


def to_frame(inputs: Inputs) -> pl.DataFrame:
    """Model inputs as the frame a pipeline takes: float32 columns n0…, then string columns c0…."""
    numeric = {f"n{at}": np.ascontiguousarray(inputs.num[:, at]) for at in range(inputs.num.shape[1])}
    categorical = {f"c{at}": pl.Series(inputs.cat[:, at], dtype=pl.String) for at in range(inputs.cat.shape[1])}
    return pl.DataFrame({**numeric, **categorical})


def _hist_gradient_boosting(task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    estimator = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    chosen = params.hist_gradient_boosting
    in_sets = encoders.sets(featurizer) if chosen.categories == "sets" else []
    return make_pipeline(
        encoders.coded(task, featurizer, seed),
        estimator(**chosen.settings, categorical_features=in_sets or None, random_state=seed),
    )


def _random_forest(task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    # No `n_jobs`: `fit` has all cores, and answers are summed by one thread, hence in one order.
    estimator = RandomForestRegressor if task == "regression" else RandomForestClassifier
    filled = SimpleImputer(strategy="constant", fill_value=BELOW_ALL, keep_empty_features=True)
    forest = estimator(**params.random_forest.model_dump(), random_state=seed)
    return make_pipeline(encoders.coded(task, featurizer, seed), filled, forest)


def _mlp(task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    estimator = networks.Regressor if task == "regression" else networks.Classifier
    return make_pipeline(
        encoders.scaled(task, featurizer, seed), estimator(**params.mlp.model_dump(), random_state=seed)
    )


def _logistic_regression(task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    estimator = LogisticRegression(**params.logistic_regression.model_dump(), random_state=seed)
    return make_pipeline(encoders.scaled(task, featurizer, seed), estimator)


def _ridge(task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    return make_pipeline(encoders.scaled(task, featurizer, seed), Ridge(**params.ridge.model_dump(), random_state=seed))


ESTIMATORS: dict[EstimatorName, Estimator] = {
    "hist_gradient_boosting": Estimator(_hist_gradient_boosting, get_args(Task)),
    "random_forest": Estimator(_random_forest, get_args(Task)),
    "mlp": Estimator(_mlp, get_args(Task)),
    "logistic_regression": Estimator(_logistic_regression, ("binary", "multiclass")),
    "ridge": Estimator(_ridge, ("regression",)),
}
"""Every estimator there is; a further one is a row here, and its parameters in params.py."""
