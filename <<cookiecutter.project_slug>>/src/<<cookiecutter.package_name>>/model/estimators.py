"""The estimators that params.yaml can name, each a scikit-learn pipeline that converts to ONNX.

A pipeline takes one frame: the numeric columns of `features.Inputs` first, then the categorical ones.
Columns are selected by position, which is what skl2onnx converts.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from ..contract import MISSING, Column, Task
from ..errors import ConfigError
from ..features import Featurizer, Inputs
from ..params import EstimatorName, TrainParams


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
    return _BUILDERS[name](task, params, featurizer, seed)


def choices(task: Task) -> list[EstimatorName]:
    """The estimators that can be trained for a task."""
    return [name for name, tasks in _TASKS.items() if task in tasks]


def to_frame(inputs: Inputs) -> pl.DataFrame:
    """Model inputs as the frame a pipeline takes: float32 columns n0…, then string columns c0…."""
    numeric = {f"n{at}": np.ascontiguousarray(inputs.num[:, at]) for at in range(inputs.num.shape[1])}
    categorical = {f"c{at}": pl.Series(inputs.cat[:, at], dtype=pl.String) for at in range(inputs.cat.shape[1])}
    return pl.DataFrame({**numeric, **categorical})


def _hist_gradient_boosting(task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    # Ordered codes, not `categorical_features=`: that converts to ONNX without a word and predicts otherwise.
    numeric, categorical = _positions(featurizer)
    encoder = OrdinalEncoder(
        categories=_categories(featurizer.categorical),
        handle_unknown="use_encoded_value",
        unknown_value=-1,
        dtype=np.float32,
    )
    estimator = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return make_pipeline(
        ColumnTransformer([("num", "passthrough", numeric), ("cat", encoder, categorical)]),
        estimator(**params.hist_gradient_boosting.model_dump(), random_state=seed),
    )


def _logistic_regression(_: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    estimator = LogisticRegression(**params.logistic_regression.model_dump(), random_state=seed)
    return make_pipeline(_scaled(featurizer), estimator)


def _ridge(_: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    return make_pipeline(_scaled(featurizer), Ridge(**params.ridge.model_dump(), random_state=seed))


def _scaled(featurizer: Featurizer) -> ColumnTransformer:
    """What a linear model sees: numbers without gaps, of mean 0 and deviation 1, and a column for each category."""
    numeric, categorical = _positions(featurizer)
    filled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    encoder = OneHotEncoder(
        categories=_categories(featurizer.categorical), handle_unknown="ignore", sparse_output=False, dtype=np.float32
    )
    return ColumnTransformer([("num", filled, numeric), ("cat", encoder, categorical)])


_BUILDERS = {
    "hist_gradient_boosting": _hist_gradient_boosting,
    "logistic_regression": _logistic_regression,
    "ridge": _ridge,
}
_TASKS: dict[EstimatorName, tuple[Task, ...]] = {
    "hist_gradient_boosting": ("binary", "multiclass", "regression"),
    "logistic_regression": ("binary", "multiclass"),
    "ridge": ("regression",),
}


def _positions(featurizer: Featurizer) -> tuple[list[int], list[int]]:
    split = len(featurizer.numeric)
    return list(range(split)), list(range(split, split + len(featurizer.categorical)))


def _categories(columns: Sequence[Column]) -> list[list[str]] | str:
    """The contract's categories and the code for missing; learnt from the data where the contract lists none."""
    if not columns or any(column.categories is None for column in columns):
        return "auto"
    return [[*(str(category) for category in column.categories or ()), MISSING] for column in columns]
