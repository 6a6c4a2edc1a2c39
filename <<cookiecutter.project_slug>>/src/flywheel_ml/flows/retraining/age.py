"""Age of the served champion, and the alert rule for one that is too old."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting.rules import MODEL_AGE, Finding, Rule
from flywheel_ml.monitoring.policy.deciding import describe_age
from flywheel_ml.monitoring.result import Result
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import read_json

AGE_ANCHOR = "old-model"


def find_age(settings: Settings, now: datetime) -> timedelta | None:
    """Find the time since the served champion was trained; None if it is not known."""
    try:
        champion = serving_folder.read_routing(settings.serving_folder).champion
        if champion is None:
            return None
        lineage = serving_folder.bundle_folder(settings.serving_folder, champion) / bundle.LINEAGE
        return now - datetime.fromisoformat(read_json(lineage)["trained_at"])
    except (ProjectError, OSError, ValueError, KeyError, TypeError):
        return None


def build_age_rule(settings: Settings, params: Params) -> Rule:
    """Build the alert rule for a champion that is older than `policy.max_model_age_days`."""

    def check(result: Result) -> Iterator[Finding]:
        age = find_age(settings, result.at)
        if evidence := "" if age is None else describe_age(age, params.policy):
            steps = ("Retrain: `make retrain`.", "If its quality is still good, raise `policy.max_model_age_days`.")
            yield Finding("warning", "the model is too old", evidence, steps, AGE_ANCHOR, MODEL_AGE)

    return check
