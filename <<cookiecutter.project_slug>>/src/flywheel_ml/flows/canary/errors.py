"""Finds out whether the models next to the champion fail more often than it; any experiment counts, not only a ramp."""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from flywheel_ml.core import serving_folder
from flywheel_ml.core.params import Params
from flywheel_ml.core.serving_folder import Routing
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.evidence import AlphaBudget
from flywheel_ml.experiments.guards import log_errors
from flywheel_ml.experiments.log_counts import CHAMPION, ExperimentReader, VariantCounts
from flywheel_ml.monitoring.alerting.rules import EXPERIMENT_ERRORS, Finding, Rule
from flywheel_ml.monitoring.result import Result
from flywheel_ml.prediction_log import CHALLENGER
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.formatting import rows as format_rows

SHADOW_SHARE, MAX_SHARE = 0.5, 0.999
ERRORS_ANCHOR = "a-paused-challenger"


def find_errors(settings: Settings, params: Params, now: datetime) -> str | None:
    """Describe the errors of a running experiment, if they are too many; empty if not, None if it cannot be said."""
    found = find_failing(settings, params, now)
    return None if found is None else "; ".join(found.values())


def find_failing(settings: Settings, params: Params, now: datetime) -> dict[str, str] | None:
    """Find the versions of a running experiment that fail too often: version → evidence; None if it cannot be said.

    The test is the guard of a canary, over the rows since the last change of routing. Its α is divided equally among
    the steps that a canary has, and among the versions.
    """
    try:
        routing = serving_folder.read_routing(settings.serving_folder)
        if not routing.experiments:
            return {}
        since = datetime.fromisoformat(routing.updated_at) + timedelta(seconds=params.canary.settle_seconds)
        span = (int(since.timestamp() * 1e6), int(now.timestamp() * 1e6))
        counted = list(_count(ExperimentReader(settings.prediction_log), routing, span))
    except ProjectError:
        return None
    steps = len(params.canary.shares) + 1
    threshold = math.log(steps * len(counted) / AlphaBudget().hourly_errors) if counted else math.inf
    found = {}
    for version, theirs, ours, share in counted:
        errors, rows = np.array((theirs.errors, ours.errors)), np.array((theirs.rows, ours.rows))
        if log_errors(errors, rows, share, ratio=1.0, rate=params.canary.max_error_rate) >= threshold:
            found[version] = (
                f"{ours.errors:,} of the {format_rows(ours.rows)} of version {version} failed, "
                f"{theirs.errors:,} of the champion's {theirs.rows:,}"
            )
    return found


def build_rule(settings: Settings, params: Params) -> Rule:
    """Build the alert rule for these errors, as they are at the time of the result."""

    def check(result: Result) -> Iterator[Finding]:
        if evidence := find_errors(settings, params, result.at):
            yield Finding(
                "critical",
                "an experiment fails more often than the champion",
                evidence,
                ("See the server's log for why the model failed.", "End it with `make abort` if it still runs."),
                ERRORS_ANCHOR,
                EXPERIMENT_ERRORS,
            )

    return check


def _count(
    reader: ExperimentReader, routing: Routing, span: tuple[int, int]
) -> Iterator[tuple[str, VariantCounts, VariantCounts, float]]:
    """Yield version, counts of the champion, its own counts, and its share among the rows of both."""
    if routing.shadow is not None:
        champion = reader.count_variants(*span, by_entity=False).get(CHAMPION, VariantCounts())
        yield routing.shadow.ref.version, champion, reader.count_shadow(*span, routing.shadow.ref.digest), SHADOW_SHARE
        return
    several = len(routing.challengers) > 1
    counts = reader.count_variants(*span, by_entity=reader.has_repeated_entities(*span), by_version=several)
    rest = 1 - math.fsum(one.share for one in routing.challengers)
    for one in routing.challengers:
        name = f"{CHALLENGER}:{one.ref.version}" if several else CHALLENGER
        share = min(one.share / max(one.share + rest, one.share), MAX_SHARE)
        yield one.ref.version, counts.get(CHAMPION, VariantCounts()), counts.get(name, VariantCounts()), share
