"""The estimators that params.yaml can name, each a scikit-learn pipeline that converts to ONNX.

A pipeline takes one frame: the numeric columns of `features.Inputs` first, then the categorical ones.
Columns are selected by position, which is what skl2onnx converts.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

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
from threadpoolctl import ThreadpoolController

from flywheel_ml.core.catalog import Estimator, list_estimators
from flywheel_ml.core.contract import Task
from flywheel_ml.core.features import Featurizer, Inputs
from flywheel_ml.core.params import (
    HistGradientBoostingParams,
    LogisticRegressionParams,
    MlpParams,
    RandomForestParams,
    RegularizedBoostingParams,
    RidgeParams,
    SplineLogisticRegressionParams,
    SplineRidgeParams,
    TrainParams,
)
from flywheel_ml.core.project import import_reference
from flywheel_ml.model.pipelines import networks, preprocessing
from flywheel_ml.model.pipelines.fitted import FittedModel
from flywheel_ml.utils.errors import ConfigError

MAX_SKLEARN_CATEGORIES = preprocessing.MAX_SET_CATEGORIES - 5
"""Of a column; the rarer ones become one."""
MAX_NEWTON_COLUMNS = 500
THREADED_CELLS = 2_000_000
"""Rows × columns from which boosting uses all cores. Below, waking threads costs more than they save: on two cores with
passive waiting one thread is 3 to 10 times as fast at 10,000 rows, and as fast at 250,000 rows of 40 columns."""
MISSING_VALUE = -1e30
"""Replacement for a missing number in a forest: lower than any real value, so that trees can separate it."""


class Rows(NamedTuple):
    """Model inputs as `to_frame` makes them, n_rows, and their target [n_rows]."""

    frame: pl.DataFrame
    labels: np.ndarray

    def take(self, places: np.ndarray) -> "Rows":
        """The rows at these places, int [n]."""
        return self if len(places) == len(self.labels) else Rows(self.frame[places], self.labels[places])


def build(name: str, task: Task, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """Build an unfitted pipeline for the columns of `featurizer`.

    Raises:
        ConfigError: the estimator does not support this task.
    """
    check_available(name, task, params.catalog)
    make = params.catalog[name].build
    made: Pipeline = (import_reference(make) if isinstance(make, str) else make)(
        task, params.parameters_of(name), featurizer, seed
    )
    return made


def check_available(name: str, task: Task, catalog: Mapping[str, Estimator], key: str = "train.estimator") -> None:
    """Check that an estimator can be trained; `key` is its key in params.yaml.

    Raises:
        ConfigError: it does not fit the task, or needs a package that is not installed.
    """
    known = list_estimators(catalog, task)
    if name not in known:
        raise ConfigError(
            f"params.yaml: {key} '{name}' is not for {task}, which the target asks for; choose from {', '.join(known)}"
        )
    extra = catalog[name].extra
    if extra is not None and find_spec(extra.module) is None:
        raise ConfigError(
            f"params.yaml: {key} '{name}' needs the package {extra.module}; install it with "
            f"`uv sync --extra {extra.name}`, or take '{name}' out"
        )


def fit(
    pipeline: Pipeline,
    frame: pl.DataFrame,
    labels: np.ndarray,
    validation: Rows | None = None,
    weights: np.ndarray | None = None,
) -> Pipeline:
    """Fit on all cores, or on one for small tables. The number of cores does not change the result.

    Args:
        weights: float [n_rows], what each row counts; None if all count alike.
        validation: rows for early stopping of gradient boosting; without them it holds out a random tenth of the rows.
    """
    weighted = {} if weights is None else {f"{pipeline.steps[-1][0]}__sample_weight": weights}
    with (
        warnings.catch_warnings(),
        parallel_config(backend="threading", n_jobs=-1),
        limit_threads(frame),
    ):
        # The number of iterations is a parameter; the gates decide whether it was sufficient.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for expected in preprocessing.EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected, UserWarning)
        if validation is None or not getattr(pipeline[-1], "early_stopping", False):
            pipeline.fit(frame, labels, **weighted)
        else:
            columns, booster = pipeline
            inputs = columns.fit_transform(frame, labels)
            held_out = columns.transform(validation.frame)
            booster.fit(inputs, labels, sample_weight=weights, X_val=held_out, y_val=validation.labels)
    return pipeline


def fit_model(
    pipeline: Pipeline, rows: Rows, task: Task, weights: np.ndarray | None = None, validation: Rows | None = None
) -> FittedModel:
    """Fit as `fit` does; a regression target is centred on its mean over these rows."""
    center = float(np.average(rows.labels, weights=weights)) if task == "regression" else 0.0
    if center:
        rows = rows._replace(labels=rows.labels - center)
        validation = validation and validation._replace(labels=validation.labels - center)
    return FittedModel(fit(pipeline, rows.frame, rows.labels, validation, weights), center)


def pick_evenly_spaced(labels: np.ndarray, n_rows: int, task: Task) -> np.ndarray:
    """Pick indices of about `n_rows` evenly spaced rows, plus the first row of each class to include rare ones."""
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), n_rows)).astype(np.intp)
    return chosen if task == "regression" else np.union1d(chosen, np.unique(labels, return_index=True)[1])


def predict(pipeline: Any, frame: pl.DataFrame, task: Task) -> np.ndarray:
    """Predict with a pipeline; float probabilities [n_rows, n_classes], or values [n_rows, 1]."""
    with limit_threads(frame):
        found: np.ndarray = pipeline.predict(frame)[:, None] if task == "regression" else pipeline.predict_proba(frame)
    return found


def limit_threads(frame: pl.DataFrame) -> AbstractContextManager[Any]:
    """Limit BLAS to one thread, and boosting too on a small frame.

    BLAS is slower on several threads for small matrices, and its sums differ in the last bits.
    """
    small = frame.height * frame.width < THREADED_CELLS
    limited: AbstractContextManager[Any] = _find_thread_pools().limit(limits=1, user_api=None if small else "blas")
    return limited


@cache
def _find_thread_pools() -> ThreadpoolController:
    """Find the thread pools of the loaded libraries; the search takes milliseconds."""
    return ThreadpoolController()


def build_sklearn_default(task: Task, featurizer: Featurizer, seed: int) -> Pipeline:
    """Build scikit-learn's gradient boosting with default settings and native categories.

    It uses the inputs of the model except free text. It is never served, because its categories do not convert to
    ONNX.
    """
    numeric, listed, unlisted, _ = preprocessing.find_positions(featurizer)
    categorical = [*listed, *unlisted]
    places = [len(numeric) + at for at in range(len(categorical))]
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, max_categories=MAX_SKLEARN_CATEGORIES, dtype=np.float32
    )
    estimator = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return make_pipeline(
        ColumnTransformer([("num", "passthrough", numeric), ("cat", encoder, categorical)]),
        estimator(categorical_features=places or None, random_state=seed),
    )


def to_frame(inputs: Inputs) -> pl.DataFrame:
    """Convert model inputs to the frame that a pipeline takes: float32 columns n0…, then string columns c0…."""
    numeric = {f"n{at}": np.ascontiguousarray(inputs.num[:, at]) for at in range(inputs.num.shape[1])}
    categorical = {f"c{at}": pl.Series(inputs.cat[:, at], dtype=pl.String) for at in range(inputs.cat.shape[1])}
    return pl.DataFrame({**numeric, **categorical})


def hist_gradient_boosting(
    task: Task, params: HistGradientBoostingParams, featurizer: Featurizer, seed: int
) -> Pipeline:
    """Gradient boosting; categories in sets or in their order."""
    estimator = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    in_sets = preprocessing.find_set_columns(featurizer) if params.categories == "sets" else []
    return make_pipeline(
        preprocessing.encode_for_trees(task, featurizer, seed),
        estimator(**params.settings, categorical_features=in_sets or None, random_state=seed),
    )


def random_forest(task: Task, params: RandomForestParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """Random forest; missing numbers become a value below all others."""
    # No `n_jobs`: `fit` has all cores, and answers are summed by one thread, hence in one order.
    estimator = RandomForestRegressor if task == "regression" else RandomForestClassifier
    filled = SimpleImputer(strategy="constant", fill_value=MISSING_VALUE, keep_empty_features=True)
    forest = estimator(**params.model_dump(), random_state=seed)
    return make_pipeline(preprocessing.encode_for_trees(task, featurizer, seed), filled, forest)


def mlp(task: Task, params: MlpParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """Small network on scaled inputs."""
    estimator = networks.Regressor if task == "regression" else networks.Classifier
    return make_pipeline(
        preprocessing.impute_and_scale(task, featurizer, seed), estimator(**params.model_dump(), random_state=seed)
    )


def regularized_boosting(task: Task, params: RegularizedBoostingParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """Gradient boosting for small tables."""
    estimator = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    chosen = params.model_dump()
    return make_pipeline(
        preprocessing.encode_for_trees(task, featurizer, seed),
        estimator(**chosen, early_stopping=False, random_state=seed),
    )


def count_linear_columns(featurizer: Featurizer) -> int:
    """Count the columns that a linear model sees."""
    listed = sum(len(column.categories) + 1 for column in featurizer.categorical if column.categories is not None)
    texts = sum(column.free_text for column in featurizer.categorical)
    others = sum(column.categories is None and not column.free_text for column in featurizer.categorical)
    return max(1, len(featurizer.numeric) + listed + texts * preprocessing.MAX_TERMS + others)


def _choose_solver(n_columns: int, task: Task) -> str:
    # Newton's method needs a tenth of the time as long as its matrix of second derivatives is small.
    return "newton-cholesky" if task == "binary" and n_columns <= MAX_NEWTON_COLUMNS else "lbfgs"


def logistic_regression(task: Task, params: LogisticRegressionParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """Linear model on scaled numbers and one column a category."""
    solver = _choose_solver(count_linear_columns(featurizer), task)
    estimator = LogisticRegression(**params.model_dump(), solver=solver, random_state=seed)
    return make_pipeline(preprocessing.impute_and_scale(task, featurizer, seed), estimator)


def ridge(task: Task, params: RidgeParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """The same for numbers."""
    return make_pipeline(
        preprocessing.impute_and_scale(task, featurizer, seed), Ridge(**params.model_dump(), random_state=seed)
    )


def spline_logistic_regression(
    task: Task, params: SplineLogisticRegressionParams, featurizer: Featurizer, seed: int
) -> Pipeline:
    """Linear model in which each number may bend."""
    solver = _choose_solver(count_linear_columns(featurizer) + len(featurizer.numeric) * params.n_knots, task)
    estimator = LogisticRegression(C=params.C, max_iter=params.max_iter, solver=solver, random_state=seed)
    return make_pipeline(preprocessing.impute_and_scale(task, featurizer, seed, params.n_knots), estimator)


def spline_ridge(task: Task, params: SplineRidgeParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """The same for numbers."""
    return make_pipeline(
        preprocessing.impute_and_scale(task, featurizer, seed, params.n_knots),
        Ridge(alpha=params.alpha, random_state=seed),
    )
