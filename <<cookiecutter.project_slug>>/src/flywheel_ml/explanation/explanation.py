"""Why a model answered a row as it did: how much each column of the contract added to, or took from, the score.

The model is asked what it would have answered had some of the row's columns been those of another row, one of the
training rows that its bundle carries, its background; from that follow Shapley values (`explanation/shapley.py`).
Nothing but the bundle's own answers is used, so this holds for every estimator, and for columns before they are
encoded: a moment, a text, or a column from which features are derived counts as one.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from flywheel_ml.core.bundle import BACKGROUND, Bundle
from flywheel_ml.core.contract import Columns, Label, columns_from_rows
from flywheel_ml.explanation import shapley
from flywheel_ml.utils.errors import NotExplainable


class Contribution(BaseModel):
    """What one column's value added to the score, and the standard error of that; `value` is as it was sent."""

    column: str
    value: bool | int | float | str | None
    contribution: float
    standard_error: float


class Method(BaseModel):
    """How contributions were found.

    `shapley-exact` scored every coalition of columns, `shapley-permutations` orders drawn by chance, always the same
    ones: against so many background rows, with so many rows scored.
    """

    name: Literal["shapley-exact", "shapley-permutations"]
    background_rows: int
    scored_rows: int


class Explanation(BaseModel):
    """What a prediction comes from: `base` and all contributions add up to `score`, the largest of them first.

    `score` is what the log keeps of a prediction: the value, or the probability of `explained_class`, which is the
    positive one of two classes, and the predicted one of more. `base` is the mean score of the background rows.
    """

    prediction: Label | float
    explained_class: Label | None
    score: float
    base: float
    contributions: list[Contribution]
    method: Method


def explain(bundle: Bundle, row: Mapping[str, Any], most: int = shapley.MAX_SCORED_ROWS) -> Explanation:
    """Explain what a model answers to one row; the same row gives the same explanation, bit for bit.

    Args:
        bundle: the model.
        row: the contract's input columns as plain values; an absent one is missing, others are passed over.
        most: rows that may be scored for it.

    Raises:
        NotExplainable: the bundle carries no background rows, or the model finds no number.
    """
    background = bundle.background
    if background is None:
        raise NotExplainable(
            f"this model's bundle has no training rows to compare with ({BACKGROUND}); "
            "with `explain.background_rows` in params.yaml above 0, train again"
        )
    inputs, classes = bundle.contract.inputs, bundle.manifest.classes
    own = columns_from_rows(inputs, [row])
    answers = _run_model(bundle, own)
    predictions = bundle.to_predictions(answers)
    place = int(answers[0].argmax()) if bundle.manifest.task == "multiclass" else -1

    def score(joined: np.ndarray, other: np.ndarray) -> np.ndarray:
        mixed = {
            column.name: np.where(joined[:, at], own[column.name], background[column.name][other])
            for at, column in enumerate(inputs)
        }
        return _run_model(bundle, mixed)[:, place].astype(np.float64)

    found = shapley.compute_shapley_values(score, len(inputs), len(background[inputs[0].name]), most)
    parts = zip(inputs, found.values.tolist(), found.errors.tolist(), strict=True)
    contributions = [
        Contribution(column=column.name, value=row.get(column.name), contribution=value, standard_error=error)
        for column, value, error in parts
    ]
    return Explanation(
        prediction=predictions.values.tolist()[0],
        explained_class=classes[place] if classes else None,
        score=found.score,
        base=found.base,
        contributions=sorted(contributions, key=lambda one: -abs(one.contribution)),
        method=Method(
            name="shapley-exact" if found.is_exact else "shapley-permutations",
            background_rows=found.others,
            scored_rows=found.scored,
        ),
    )


def _run_model(bundle: Bundle, columns: Columns) -> np.ndarray:
    try:
        answers = bundle.run(bundle.encode(columns))
    except Exception as error:
        raise NotExplainable(
            f"the model fails at this row, or at one between it and its background: {type(error).__name__}"
        ) from error
    if not np.isfinite(answers).all():
        raise NotExplainable("the model finds no number at this row, or at one between it and its background")
    return answers
