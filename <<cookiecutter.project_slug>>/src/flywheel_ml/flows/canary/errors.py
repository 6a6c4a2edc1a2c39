"""Finds out whether the models next to the champion fail more often than it; any experiment counts, not only a ramp."""

import math
from collections import Counter
from datetime import datetime, timedelta

import numpy as np

from flywheel_ml.core import serving_folder
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.evidence import AlphaBudget
from flywheel_ml.experiments.guards import log_errors
from flywheel_ml.experiments.log_counts import CHAMPION, ExperimentReader
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.formatting import rows as format_rows

SHADOW_SHARE = 0.5


def find_errors(settings: Settings, params: Params, now: datetime) -> str | None:
    """Describe the errors of a running experiment, if they are too many; empty if not, None if it cannot be said.

    The test is the guard of a canary, with its α, over the rows since the last change of routing.
    """
    try:
        routing = serving_folder.read_routing(settings.serving_folder)
        if not routing.experiments:
            return ""
        since = datetime.fromisoformat(routing.updated_at) + timedelta(seconds=params.canary.settle_seconds)
        span = (int(since.timestamp() * 1e6), int(now.timestamp() * 1e6))
        reader = ExperimentReader(settings.prediction_log)
        counts = reader.count_variants(*span, by_entity=reader.has_repeated_entities(*span))
        theirs = counts.pop(CHAMPION, None)
        ours = Counter(rows=0, errors=0)
        found = counts.values() if routing.shadow is None else [reader.count_shadow(*span, routing.shadow.ref.digest)]
    except ProjectError:
        return None
    for one in found:
        ours.update(rows=one.rows, errors=one.errors)
    rows = np.array((theirs.rows if theirs else 0, ours["rows"]))
    errors = np.array((theirs.errors if theirs else 0, ours["errors"]))
    share = min(sum(one.share for one in routing.challengers) or SHADOW_SHARE, 0.999)
    evidence = float(log_errors(errors, rows, share, ratio=1.0, rate=params.canary.max_error_rate))
    if evidence < -math.log(AlphaBudget().errors):
        return ""
    return (
        f"{errors[1]:,} of the experiment's {format_rows(int(rows[1]))} failed, "
        f"{errors[0]:,} of the champion's {int(rows[0]):,}"
    )
