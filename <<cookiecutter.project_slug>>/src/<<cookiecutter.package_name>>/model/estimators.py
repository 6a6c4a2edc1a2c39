"""The estimators that params.yaml can name, each a scikit-learn pipeline that converts to ONNX.

A pipeline takes one frame: the numeric columns of `features.Inputs` first, then the categorical ones.
Columns are selected by position, which is what skl2onnx converts.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from ..contract import MISSING, Column
from ..features import Featurizer, Inputs
from ..params import EstimatorName, TrainParams


def build(name: EstimatorName, params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    """An unfitted pipeline for the columns that `featurizer` makes."""
    return _BUILDERS[name](params, featurizer, seed)


def to_frame(inputs: Inputs) -> pl.DataFrame:
    """Model inputs as the frame a pipeline takes: float32 columns n0…, then string columns c0…."""
    numeric = {f"n{at}": np.ascontiguousarray(inputs.num[:, at]) for at in range(inputs.num.shape[1])}
    categorical = {f"c{at}": pl.Series(inputs.cat[:, at], dtype=pl.String) for at in range(inputs.cat.shape[1])}
    return pl.DataFrame({**numeric, **categorical})


def _hist_gradient_boosting(params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    # Ordered codes, not `categorical_features=`: that converts to ONNX without a word and predicts otherwise.
    numeric, categorical = _positions(featurizer)
    encoder = OrdinalEncoder(
        categories=_categories(featurizer.categorical),
        handle_unknown="use_encoded_value",
        unknown_value=-1,
        dtype=np.float32,
    )
    return make_pipeline(
        ColumnTransformer([("num", "passthrough", numeric), ("cat", encoder, categorical)]),
        HistGradientBoostingClassifier(
            **params.hist_gradient_boosting.model_dump(), early_stopping=False, random_state=seed
        ),
    )


def _logistic_regression(params: TrainParams, featurizer: Featurizer, seed: int) -> Pipeline:
    numeric, categorical = _positions(featurizer)
    filled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    encoder = OneHotEncoder(
        categories=_categories(featurizer.categorical), handle_unknown="ignore", sparse_output=False, dtype=np.float32
    )
    return make_pipeline(
        ColumnTransformer([("num", filled, numeric), ("cat", encoder, categorical)]),
        LogisticRegression(**params.logistic_regression.model_dump(), random_state=seed),
    )


_BUILDERS = {
    "hist_gradient_boosting": _hist_gradient_boosting,
    "logistic_regression": _logistic_regression,
}


def _positions(featurizer: Featurizer) -> tuple[list[int], list[int]]:
    split = len(featurizer.numeric)
    return list(range(split)), list(range(split, split + len(featurizer.categorical)))


def _categories(columns: Sequence[Column]) -> list[list[str]] | str:
    """The contract's categories and the code for missing; learnt from the data where the contract lists none."""
    if not columns or any(column.categories is None for column in columns):
        return "auto"
    return [[*(column.categories or ()), MISSING] for column in columns]
