"""How columns become numbers for an estimator, as scikit-learn transformers that convert to ONNX bit by bit.

Texts are in three ways: listed categories by their place or by a column each, others by the target's mean among their
rows, and free texts by their words. What trees see of them is the same float32 number in both libraries.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import f_classif, f_regression
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from flywheel_ml.core.contract import MISSING, Column, Task
from flywheel_ml.core.features import Featurizer

_TARGET_TYPES: dict[Task, str] = {"binary": "binary", "multiclass": "multiclass", "regression": "continuous"}
MAX_TERMS = 128
"""Maximum words and word pairs of a text column that a model sees."""
_WORDS = "words"
MAX_SET_CATEGORIES = 255
"""Maximum categories per column of scikit-learn's gradient boosting."""
_CANDIDATES, _CANDIDATE_ROWS = 20_000, 20_000
EXPECTED_WARNINGS = ("The least populated class", "Features .* are constant")
"""Warnings of scikit-learn about data that these transformers accept.

A class with fewer rows than folds is missing in some folds, and a word in every row has no information. The warnings
are ignored where pipelines are fitted: columns are fitted in threads, and Python 3.11 has one list of ignored warnings
for all threads.
"""


class CrossFittedTargetEncoder(TargetEncoder):  # type: ignore[misc]
    """Target means of categories, cross-fitted in training, so that no row's own target reaches its feature.

    What is kept for later rows is rounded to float32, the numbers that the graph compares.
    """

    encodings_: list[np.ndarray]
    target_mean_: Any

    def fit_transform(self, X: Any, y: Any) -> np.ndarray:  # noqa: N803 - scikit-learn's name.
        """As scikit-learn's, for texts [n_rows, n_columns] and the target [n_rows]."""
        means: np.ndarray = super().fit_transform(X, y)
        self.encodings_ = [found.astype(np.float32).astype(np.float64) for found in self.encodings_]
        self.target_mean_ = np.asarray(self.target_mean_).astype(np.float32).astype(np.float64)
        return means


class TopTermsTfidf(TfidfVectorizer):  # type: ignore[misc]
    """TF-IDF of the `MAX_TERMS` words and word pairs with the highest F statistic for the target.

    Takes texts as `features.tokenize` makes them. Rows are not scaled to one length: a product of two float32 numbers
    is the same everywhere, a norm is not, and trees would turn its last bit into another answer.
    """

    def __init__(self, task: Task = "binary") -> None:
        super().__init__(
            lowercase=False,
            token_pattern="[^ ]+",  # noqa: S106 - a pattern of words.
            ngram_range=(1, 2),
            norm=None,
            dtype=np.float32,
            max_features=_CANDIDATES,
        )
        self.task = task

    def fit_transform(self, raw_documents: Any, y: Any = None) -> Any:
        """Choose the terms by texts [n_rows] and the target [n_rows]; their TF-IDF, sparse [n_rows, n_terms]."""
        texts, truth = np.asarray(raw_documents, dtype=object), np.asarray(y)
        sample = np.linspace(0, len(texts) - 1, min(len(texts), _CANDIDATE_ROWS)).astype(np.intp)
        self._set_vocabulary(None)
        counts = super().fit_transform(texts[sample])
        score_terms = f_regression if self.task == "regression" else f_classif
        with np.errstate(all="ignore"):
            scores = np.nan_to_num(score_terms(counts, truth[sample])[0], nan=0.0, posinf=np.finfo(np.float64).max)
        names = self.get_feature_names_out()
        best = np.argsort(-scores, kind="stable")[:MAX_TERMS]
        self._set_vocabulary(sorted(str(name) for name in names[best]))
        return super().fit_transform(texts)

    def fit(self, raw_documents: Any, y: Any = None) -> "TopTermsTfidf":
        """As `fit_transform`."""
        self.fit_transform(raw_documents, y)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Omit a memory address that scikit-learn stores, so that two runs pickle equal bytes."""
        return {name: value for name, value in super().__getstate__().items() if name != "_stop_words_id"}

    def _set_vocabulary(self, terms: list[str] | None) -> None:
        self.vocabulary = terms


class LinearSplines(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Linear spline basis of numeric columns [n_rows, n_columns], NaN for missing.

    A column becomes its values (missing ones: the median), max(0, value − knot) for each of `n_knots` quantiles that
    differ, and whether it was missing, where training rows are. All in float32, as the ONNX graph computes.
    """

    def __init__(self, n_knots: int = 5) -> None:
        self.n_knots = n_knots

    def fit(self, X: Any, y: Any = None) -> "LinearSplines":  # noqa: ARG002, N803 - scikit-learn's names.
        """Place the knots of each column."""
        values = np.asarray(X, dtype=np.float32)
        self.n_features_in_ = values.shape[1]
        shares = np.arange(1, self.n_knots + 1) / (self.n_knots + 1)
        medians, columns, knots, gaps = [], [], [], []
        for at, column in enumerate(values.T):
            present = column[~np.isnan(column)]
            medians.append(np.quantile(present, 0.5, method="inverted_cdf") if len(present) else np.float32(0))
            if len(present) < len(column):
                gaps.append(at)
            if len(present):
                found = np.unique(np.quantile(present, shares, method="inverted_cdf"))
                inner = found[(found > present.min()) & (found < present.max())]
                columns += [at] * len(inner)
                knots += inner.tolist()
        self.medians_ = np.array(medians, dtype=np.float32)
        self.columns_ = np.array(columns, dtype=np.int64)
        self.knots_ = np.array(knots, dtype=np.float32)
        self.gaps_ = np.array(gaps, dtype=np.int64)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803 - scikit-learn's name.
        """float32 [n_rows, n_columns + n_knots in all + columns with gaps]."""
        values = np.asarray(X, dtype=np.float32)
        missing = np.isnan(values)
        filled = np.where(missing, self.medians_, values)
        bends = np.maximum(filled[:, self.columns_] - self.knots_, np.float32(0))
        return np.hstack([filled, bends, missing[:, self.gaps_].astype(np.float32)])


def encode_for_trees(task: Task, featurizer: Featurizer, seed: int) -> ColumnTransformer:
    """Build the tree preprocessing: numbers with gaps, ordinal categories, target means and words."""
    numeric, listed, _, _ = find_positions(featurizer)
    encoder = OrdinalEncoder(
        categories=_list_categories(featurizer.categorical),
        handle_unknown="use_encoded_value",
        unknown_value=-1,
        dtype=np.float32,
    )
    return ColumnTransformer(
        [
            ("num", "passthrough", numeric),
            ("cat", encoder, listed),
            *((name, make(), at) for name, make, at in _list_target_transformers(task, featurizer, seed)),
        ],
        sparse_threshold=0,
    )


def impute_and_scale(task: Task, featurizer: Featurizer, seed: int, n_knots: int = 0) -> ColumnTransformer:
    """Build the linear preprocessing: imputed and standardized numbers, and one column per category.

    With `n_knots`, numbers as linear splines.
    """
    numeric, listed, _, _ = find_positions(featurizer)
    filling = LinearSplines(n_knots) if n_knots else SimpleImputer(strategy="median", keep_empty_features=True)
    filled = make_pipeline(filling, StandardScaler())
    encoder = OneHotEncoder(
        categories=_list_categories(featurizer.categorical),
        handle_unknown="ignore",
        sparse_output=False,
        dtype=np.float32,
    )
    return ColumnTransformer(
        [
            ("num", filled, numeric),
            ("cat", encoder, listed),
            *(
                (name, make_pipeline(make(), StandardScaler(with_mean=False)), at)
                for name, make, at in _list_target_transformers(task, featurizer, seed)
            ),
        ],
        sparse_threshold=0,
    )


def drop_text(pipeline: Pipeline) -> Pipeline:
    """The pipeline (its first step a transformer of this module), unfitted, without the columns of words."""
    left = clone(pipeline)
    columns = left[0]
    columns.transformers = [entry for entry in columns.transformers if not entry[0].startswith(_WORDS)]
    return left


def _list_target_transformers(
    task: Task, featurizer: Featurizer, seed: int
) -> Iterator[tuple[str, Callable[[], Any], list[int] | int]]:
    """List the transformers that use the target: name, factory and column positions."""
    _, _, unlisted, texts = find_positions(featurizer)
    if unlisted:
        folds = (KFold if task == "regression" else StratifiedKFold)(5, shuffle=True, random_state=seed)
        yield "means", lambda: CrossFittedTargetEncoder(target_type=_TARGET_TYPES[task], cv=folds), unlisted
    for at in texts:
        yield f"{_WORDS}{at}", lambda: TopTermsTfidf(task), at


def find_positions(featurizer: Featurizer) -> tuple[list[int], list[int], list[int], list[int]]:
    """Places of the frame's numbers, listed categories, other categories, and texts."""
    first = len(featurizer.numeric)
    columns = list(enumerate(featurizer.categorical, start=first))
    return (
        list(range(first)),
        [at for at, column in columns if column.categories is not None],
        [at for at, column in columns if column.categories is None and not column.free_text],
        [at for at, column in columns if column.free_text],
    )


def find_set_columns(featurizer: Featurizer) -> list[int]:
    """Columns of `encode_for_trees` whose categories scikit-learn can split into sets: more than two, few enough."""
    first = len(featurizer.numeric)
    sizes = [
        len(names) + column.nullable for column in featurizer.categorical if (names := column.categories) is not None
    ]
    # One more code is for what the contract tolerates unlisted.
    return [first + at for at, size in enumerate(sizes) if 2 < size < MAX_SET_CATEGORIES]


def _list_categories(columns: Sequence[Column]) -> list[list[str]]:
    """The contract's categories and the code for missing, where it lists them."""
    return [
        [*(str(category) for category in column.categories), MISSING]
        for column in columns
        if column.categories is not None
    ]


def register_converters() -> None:
    """Register converters for this module's transformers in skl2onnx."""
    from skl2onnx import update_registered_converter

    update_registered_converter(LinearSplines, "LinearSplines", _set_splines_shape, _convert_splines)
    update_registered_converter(CrossFittedTargetEncoder, "Means", _set_target_encoder_shape, _convert_target_encoder)
    update_registered_converter(TopTermsTfidf, "Terms", _set_tfidf_shape, _convert_tfidf)


def _set_splines_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    fitted = operator.raw_operator
    width = len(fitted.medians_) + len(fitted.knots_) + len(fitted.gaps_)
    operator.outputs[0].type = FloatTensorType([None, width])


def _convert_splines(scope: Any, operator: Any, container: Any) -> None:
    """Fill gaps with medians, then Relu(column − knot) for each knot, then the gaps as 0 and 1."""
    from onnx import TensorProto

    fitted, (values,), (output,) = operator.raw_operator, operator.input_full_names, operator.output_full_names
    parts = ("missing", "medians", "filled", "columns", "knots", "taken", "apart", "bends", "flags", "gaps", "gone")
    names = {part: scope.get_unique_variable_name(part) for part in parts}
    container.add_initializer(names["medians"], TensorProto.FLOAT, [len(fitted.medians_)], fitted.medians_.tolist())
    _add_node(scope, container, "IsNaN", [values], names["missing"], version=13)
    _add_node(scope, container, "Where", [names["missing"], names["medians"], values], names["filled"], version=16)
    joined = [names["filled"]]
    if len(fitted.knots_):
        container.add_initializer(names["columns"], TensorProto.INT64, [len(fitted.columns_)], fitted.columns_.tolist())
        container.add_initializer(names["knots"], TensorProto.FLOAT, [len(fitted.knots_)], fitted.knots_.tolist())
        _add_node(scope, container, "Gather", [names["filled"], names["columns"]], names["taken"], version=13, axis=1)
        _add_node(scope, container, "Sub", [names["taken"], names["knots"]], names["apart"], version=14)
        _add_node(scope, container, "Relu", [names["apart"]], names["bends"], version=14)
        joined.append(names["bends"])
    if len(fitted.gaps_):
        container.add_initializer(names["gaps"], TensorProto.INT64, [len(fitted.gaps_)], fitted.gaps_.tolist())
        _add_node(scope, container, "Cast", [names["missing"]], names["flags"], version=13, to=TensorProto.FLOAT)
        _add_node(scope, container, "Gather", [names["flags"], names["gaps"]], names["gone"], version=13, axis=1)
        joined.append(names["gone"])
    _add_node(scope, container, "Concat", joined, output, version=13, axis=1)


def _set_target_encoder_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    operator.outputs[0].type = FloatTensorType([None, len(operator.raw_operator.encodings_)])


def _convert_target_encoder(scope: Any, operator: Any, container: Any) -> None:
    """A category's place among the known ones, and a table of means whose last row is for all others."""
    from onnx import TensorProto

    fitted, (texts,), (output,) = operator.raw_operator, operator.input_full_names, operator.output_full_names
    n_outputs = len(fitted.encodings_) // len(fitted.categories_)
    blocks = []
    for at, categories in enumerate(fitted.categories_):
        means = np.stack(fitted.encodings_[at * n_outputs : (at + 1) * n_outputs], axis=1)
        table = np.vstack([means, np.broadcast_to(fitted.target_mean_, (1, n_outputs))]).astype(np.float32)
        names = {part: scope.get_unique_variable_name(part) for part in ("at", "column", "flat", "shape", "place")}
        names |= {part: scope.get_unique_variable_name(part) for part in ("table", "block")}
        container.add_initializer(names["at"], TensorProto.INT64, [1], [at])
        container.add_initializer(names["shape"], TensorProto.INT64, [1], [-1])
        container.add_initializer(names["table"], TensorProto.FLOAT, list(table.shape), table.ravel().tolist())
        _add_node(scope, container, "Gather", [texts, names["at"]], names["column"], axis=1)
        _add_node(scope, container, "Reshape", [names["column"], names["shape"]], names["flat"])
        _add_node(
            scope, container, "LabelEncoder", [names["flat"]], names["place"], domain="ai.onnx.ml", version=2,
            keys_strings=[str(name) for name in categories], values_int64s=list(range(len(categories))),
            default_int64=len(categories),
        )  # fmt: skip
        _add_node(scope, container, "Gather", [names["table"], names["place"]], names["block"], axis=0)
        blocks.append(names["block"])
    _add_node(scope, container, "Concat", blocks, output, axis=1)


def _set_tfidf_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    operator.outputs[0].type = FloatTensorType([None, len(operator.raw_operator.vocabulary_)])


def _convert_tfidf(scope: Any, operator: Any, container: Any) -> None:
    """Words split at spaces, counted alone and in pairs, times the inverse document frequency of each."""
    fitted, (texts,), (output,) = operator.raw_operator, operator.input_full_names, operator.output_full_names
    terms = sorted(fitted.vocabulary_, key=lambda term: (" " in term, fitted.vocabulary_[term]))
    places = [int(fitted.vocabulary_[term]) for term in terms]
    words, flat = scope.get_unique_variable_name("words"), scope.get_unique_variable_name("flat")
    # No word is called so: words have no "#".
    _add_node(
        scope, container, "Tokenizer", [texts], words, domain="com.microsoft", version=1,
        mark=0, mincharnum=1, pad_value="#", separators=[" "],
    )  # fmt: skip
    _add_node(scope, container, "Flatten", [words], flat)
    _add_node(
        scope, container, "TfIdfVectorizer", [flat], output, version=9,
        mode="TFIDF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
        ngram_counts=[0, sum(" " not in term for term in terms)], ngram_indexes=places,
        pool_strings=[word for term in terms for word in term.split(" ")],
        weights=[float(fitted.idf_[at]) for at in places],
    )  # fmt: skip


def _add_node(
    scope: Any, container: Any, kind: str, inputs: list[str], output: str, domain: str = "", version: int = 18,
    **attributes: Any,
) -> None:  # fmt: skip
    name = scope.get_unique_operator_name(kind)
    container.add_node(kind, inputs, output, op_domain=domain, op_version=version, name=name, **attributes)
