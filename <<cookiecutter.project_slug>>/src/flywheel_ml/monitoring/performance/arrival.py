"""Describes how labels arrive: for how many rows, how late, and whether the labelled rows are like the others."""

import numpy as np

from flywheel_ml.core.contract import Task
from flywheel_ml.core.params import MonitorParams
from flywheel_ml.core.profile import PREDICTION
from flywheel_ml.monitoring.ks import ks_distance, ks_p_value
from flywheel_ml.monitoring.performance.intervals import wilson_interval
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils import config_model, formatting

QUANTILES = (0.5, 0.9, 0.99, 1.0)


class ArrivalBias(config_model.StrictModel):
    """Distance between the scores of labelled and of unlabelled rows (Kolmogorov-Smirnov), and its p-value."""

    effect: float
    p_value: float
    unlabelled: int
    biased: bool


class Arrival(config_model.StrictModel):
    """Arrival of labels.

    `coverage` of the answered rows has an interval of Wilson 1927. `delays` are quantiles of the hours from a
    prediction to its label's arrival, over the `timed` labels whose arrival is known. `bias` is None if there are too
    few rows of either kind.
    """

    answered: int
    labelled: int
    coverage: float
    low: float
    high: float
    timed: int
    delays: dict[str, float]
    bias: ArrivalBias | None

    @property
    def caution(self) -> str:
        """What the reader should know before trusting the metrics; empty if nothing."""
        if self.bias is None or not self.bias.biased:
            return ""
        return (
            f"Labelled rows have other scores than the {formatting.rows(self.bias.unlabelled)} without a label "
            f"(KS distance {self.bias.effect:.2f}, p {formatting.p_value(self.bias.p_value)}): the metrics describe "
            "the labelled rows, not all. Compare them again when more labels have arrived."
        )


def assess_arrival(window: Window, task: Task, params: MonitorParams) -> Arrival:
    """Describe the arrival of a window's labels.

    Args:
        window: the monitored rows.
        task: the task, which says which output is the score.
        params: confidence level, and what counts as a difference of scores.
    """
    labelled = len(window.truth)
    answered = max(window.rows - window.degraded, labelled)
    share = wilson_interval(labelled, answered, params.confidence_level) if answered else None
    hours = window.delays[~np.isnan(window.delays)] / 3600
    names = [f"{quantile:.0%}" for quantile in QUANTILES]
    delays = np.quantile(hours, QUANTILES).tolist() if len(hours) else []
    return Arrival(
        answered=answered,
        labelled=labelled,
        coverage=share.value if share else 0.0,
        low=share.low if share else 0.0,
        high=share.high if share else 0.0,
        timed=len(hours),
        delays=dict(zip(names, delays, strict=bool(delays))),
        bias=_compare_scores(window, task, params),
    )


def _compare_scores(window: Window, task: Task, params: MonitorParams) -> ArrivalBias | None:
    """Compare labelled with unlabelled rows, in the bins of the reference: the unlabelled are all but the labelled."""
    counts = window.profile.columns.get(PREDICTION)
    if counts is None or len(window.truth) < params.min_labels:
        return None
    output = window.output.astype(np.float64)
    scores = {"binary": output[:, -1], "multiclass": output.max(axis=1), "regression": output[:, 0]}[task]
    bins = np.searchsorted(np.array(counts.edges), scores, side="left")
    labelled = np.bincount(bins, minlength=len(counts.counts))
    unlabelled = np.clip(np.array(counts.counts) - labelled, 0, None)
    if unlabelled.sum() < params.min_labels:
        return None
    effect, p_value = ks_distance(labelled, unlabelled), ks_p_value(labelled, unlabelled)
    biased = p_value <= params.significance_level and effect >= params.min_effect_prediction
    return ArrivalBias(effect=effect, p_value=p_value, unlabelled=int(unlabelled.sum()), biased=biased)
