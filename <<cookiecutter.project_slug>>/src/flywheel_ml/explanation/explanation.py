"""Explains predictions: how much each column of the contract added to, or subtracted from, the score.

The model scores mixes of the row and background rows, which are training rows in the bundle. Each mix takes some
columns from the row and the others from a background row. Shapley values follow from these scores
(`explanation/shapley.py`). Only the bundle's predictions are used, so this works for every estimator. It explains
columns before they are encoded: a timestamp, a text, or a column with derived features counts as one column.
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
    """The contribution of one column's value to the score, with its standard error; `value` is as it was sent."""

    column: str
    value: bool | int | float | str | None
    contribution: float
    standard_error: float


class Method(BaseModel):
    """How contributions were computed.

    `shapley-exact` scores every coalition of columns. `shapley-permutations` scores random orders of columns, drawn
    with a fixed seed. `scored_rows` counts the rows scored for this, with `background_rows` background rows.
    """

    name: Literal["shapley-exact", "shapley-permutations"]
    background_rows: int
    scored_rows: int


class Explanation(BaseModel):
    """The explanation of a prediction; `base` and all contributions add up to `score`, largest contributions first.

    `score` is the score in the log: the predicted number, or the probability of `explained_class`. That is the positive
    class of two, or the predicted class of more. `base` is the mean score of the background rows.
    """

    prediction: Label | float
    explained_class: Label | None
    score: float
    base: float
    contributions: list[Contribution]
    method: Method


def explain(bundle: Bundle, row: Mapping[str, Any], most: int = shapley.MAX_SCORED_ROWS) -> Explanation:
    """Explain the prediction for one row; the same row gives the same explanation, bit for bit.

    Args:
        bundle: the model.
        row: the contract's input columns as plain values; absent columns are missing, other columns are ignored.
        most: maximum rows to score.

    Raises:
        NotExplainable: the bundle has no background rows, or the model's output is not finite.
    """
    background = bundle.background
    if background is None:
        raise NotExplainable(
            f"this model's bundle has no background rows ({BACKGROUND}); "
            "set `explain.background_rows` in params.yaml above 0 and train again"
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
            f"the model failed on this row or on a background mix of it: {type(error).__name__}"
        ) from error
    if not np.isfinite(answers).all():
        raise NotExplainable("the model returned NaN or infinity on this row or on a background mix of it")
    return answers
