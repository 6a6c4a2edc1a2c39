"""Why a logged prediction came out as it did: explained by the model version that made it."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import columns_from_rows
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.explanation.explanation import Explanation, explain
from flywheel_ml.prediction_log import Prediction, Reader, to_datetime
from flywheel_ml.utils.errors import IntegrityError, NotExplainable, ProjectError

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

SCORE_TOLERANCE = 1e-4
"""So far may a score lie from the logged one, as a share of it: libraries differ in low bits."""


class ExplainedPrediction(NamedTuple):
    """A prediction as it was logged, and where its score came from."""

    prediction: Prediction
    explanation: Explanation

    def to_dict(self) -> dict[str, Any]:
        """Both, as JSON would carry them."""
        logged = self.prediction
        known = {"id": logged.id, "at": to_datetime(logged.timestamp_us).isoformat(), "entity_id": logged.entity_id}
        model = {"model_version": logged.model_version, "model_digest": logged.model_digest}
        how = {"variant": logged.variant, "degraded": logged.degraded}
        return known | model | how | self.explanation.model_dump()


def explain_logged(
    project: Project, name: str, settings: Settings, connect: Callable[[], "Registry"]
) -> ExplainedPrediction:
    """Explain the prediction of an id, a shadow's too, by its own model version.

    The bundle comes from the serving folder, or, where that does not hold it any more, from the registry.

    Args:
        project: whose features the bundle needs.
        name: the prediction's id.
        settings: where log and serving folder are.
        connect: opens the registry; called only if it is needed.

    Raises:
        ProjectError: the log does not have the prediction, or neither place has its version.
        NotExplainable: a prior answered, or the bundle carries no rows to compare with.
        IntegrityError: the version does not give the logged score any more.
    """
    logged = Reader(settings.prediction_log).find(name)
    if logged is None:
        raise ProjectError(
            f"the prediction log has no prediction '{name}'; ids stand in answers, "
            "and ML_PREDICTION_LOG says which log is looked at"
        )
    row: Mapping[str, Any] = json.loads(logged.inputs)
    bundle = _open_bundle(project, logged, settings, connect)
    if logged.degraded and _is_close(_score(bundle.prior, row), logged.score):
        raise NotExplainable(
            f"prediction '{name}' was answered by the prior of version {logged.model_version}, which gives every row "
            "the same answer, because no model could; there is nothing to explain"
        )
    found = explain(bundle, row)
    if not _is_close(found.score, logged.score):
        raise IntegrityError(
            f"prediction '{name}' was logged with the score {logged.score:.6g}, and version {logged.model_version} "
            f"gives {found.score:.6g} here; use the libraries that its manifest.json names"
        )
    return ExplainedPrediction(logged, found)


def _open_bundle(project: Project, logged: Prediction, settings: Settings, connect: Callable[[], "Registry"]) -> Bundle:
    version, digest = logged.model_version, logged.model_digest
    path, known = _find_served(settings.serving_folder, version, digest)
    gone = f"version {version}, which made prediction '{logged.id}', is "
    if path is None or not path.is_dir():
        gone += "not in the serving folder any more"
    else:
        try:
            return Bundle.open(path, known, project.features)
        except IntegrityError as error:
            gone += f"not whole in the serving folder ({error})"
    try:
        registry = connect()
        found = registry.find(digest) if digest else registry.get(version)
        if found is None:
            raise ProjectError(f"no version of '{registry.name}' has the sha256 {digest}")
        with tempfile.TemporaryDirectory() as scratch:
            registry.download(found, Path(scratch))
            return Bundle.open(Path(scratch), found.digest, project.features)
    except ProjectError as error:
        raise ProjectError(f"{gone}, and the registry does not give it: {error}") from None


def _find_served(folder: Path, version: str, digest: str | None) -> tuple[Path | None, str | None]:
    """Where the serving folder has a model, and its digest as far as that is known.

    Rows that were logged before digests name a version alone.
    """
    if digest is not None:
        return serving_folder.find_bundle(folder, digest), digest
    try:
        now = serving_folder.read_routing(folder)
        beside = [one.ref for one in (now.challenger, now.shadow) if one]
    except ProjectError:
        refs = []
    else:
        refs = [ref for ref in (now.champion, now.previous, *beside) if ref and ref.version == version]
    if refs:
        return serving_folder.bundle_folder(folder, refs[0]), refs[0].digest
    found = folder.joinpath(serving_folder.BUNDLES).glob(f"{version}*")
    return min((path for path in found if path.name.split("-")[0] == version), default=None), None


def _score(bundle: Bundle, row: Mapping[str, Any]) -> float:
    return float(bundle.predict(columns_from_rows(bundle.contract.inputs, [row])).scores[0])


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE / 10)
