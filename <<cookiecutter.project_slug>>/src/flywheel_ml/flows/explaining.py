"""Explains a logged prediction with the model version that made it."""

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import columns_from_rows
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.explanation.explanation import Explanation, explain
from flywheel_ml.flows.bundles import open_bundle_of
from flywheel_ml.prediction_log import Prediction, Reader, to_datetime
from flywheel_ml.utils.errors import IntegrityError, NotExplainable, ProjectError

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

SCORE_TOLERANCE = 1e-4
"""Allowed relative difference between a score and the logged one: library versions differ in the low bits."""


class ExplainedPrediction(NamedTuple):
    """A logged prediction and the explanation of its score."""

    prediction: Prediction
    explanation: Explanation

    def to_dict(self) -> dict[str, Any]:
        """Return both as one dictionary for JSON."""
        logged = self.prediction
        known = {"id": logged.id, "at": to_datetime(logged.timestamp_us).isoformat(), "entity_id": logged.entity_id}
        model = {"model_version": logged.model_version, "model_digest": logged.model_digest}
        how = {"variant": logged.variant, "degraded": logged.degraded}
        return known | model | how | self.explanation.model_dump()


def explain_logged(
    project: Project, name: str, settings: Settings, connect: Callable[[], "Registry"]
) -> ExplainedPrediction:
    """Explain the prediction with this id, including a shadow's, with the model version that made it.

    The bundle comes from the serving folder; if it is no longer there, from the registry.

    Args:
        project: the project, whose features the bundle needs.
        name: the id of the prediction.
        settings: the locations of the log and the serving folder.
        connect: opens the registry; called only if the serving folder lacks the bundle.

    Raises:
        ProjectError: the prediction is not in the log, or its version is neither served nor registered.
        NotExplainable: the class prior made the prediction, or the bundle has no background rows.
        IntegrityError: the version no longer returns the logged score.
    """
    logged = Reader(settings.prediction_log).find(name)
    if logged is None:
        raise ProjectError(
            f"the prediction log has no prediction '{name}'; take the id from a /predict response; "
            "ML_PREDICTION_LOG selects the log"
        )
    row: Mapping[str, Any] = json.loads(logged.inputs)
    bundle = open_bundle_of(project, logged, settings, connect)
    if logged.degraded and _is_close(_score(bundle.prior, row), logged.score):
        raise NotExplainable(
            f"prediction '{name}' was made by the class prior of version {logged.model_version}, because no model was "
            "available; the prior returns the same value for every row, so there is nothing to explain"
        )
    found = explain(bundle, row)
    if not _is_close(found.score, logged.score):
        raise IntegrityError(
            f"prediction '{name}' was logged with the score {logged.score:.6g}, and version {logged.model_version} "
            f"returns {found.score:.6g} here; install the library versions that its manifest.json lists"
        )
    return ExplainedPrediction(logged, found)


def _score(bundle: Bundle, row: Mapping[str, Any]) -> float:
    return float(bundle.predict(columns_from_rows(bundle.contract.inputs, [row])).scores[0])


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE / 10)
