"""Compares candidate and champion on the same labelled rows, by the paired difference of their losses."""

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import t as student

from flywheel_ml.core.contract import Task
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.retraining_params import RetrainParams
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.training.selection import TIME_BLOCKS, compute_mean_and_error, compute_row_losses
from flywheel_ml.utils import config_model, formatting

GATE = "as good as the champion on recent labels"
KEPT_SKILL = "recent labels can be predicted"


class LabelledRows(NamedTuple):
    """n_rows that neither model was trained on, in the order of time.

    Attributes:
        truth: float64 [n_rows], as `Contract.encode_target` has it.
        candidate, champion: float [n_rows, k], the outputs of both models, as in `metrics.compute_metrics`.
        weights: float64 [n_rows].
        clusters: int [n_rows]; rows that depend on each other share one.
    """

    truth: np.ndarray
    candidate: np.ndarray
    champion: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray


class PairedComparison(config_model.StrictModel):
    """Mean losses of both models on the same rows, and the interval of their difference: candidate minus champion."""

    rows: int
    clusters: int
    loss: Literal["log loss", "squared error"]
    candidate: float
    champion: float
    difference: float
    low: float | None
    high: float | None
    level: float


def compare(task: Task, rows: LabelledRows, level: float) -> PairedComparison:
    """Compare the mean losses by the interval of their paired difference.

    The interval is that of Student's t with cluster-robust standard errors and one degree of freedom less than there
    are clusters. It has no ends if there is only one cluster.
    """
    losses = {
        name: compute_row_losses(task, rows.truth, answers)
        for name, answers in (("candidate", rows.candidate), ("champion", rows.champion))
    }
    difference, error, clusters = compute_mean_and_error(
        losses["candidate"] - losses["champion"], rows.weights, rows.clusters
    )
    half = float(student.ppf(0.5 + level / 2, max(1, clusters - 1))) * error
    return PairedComparison(
        rows=len(rows.truth),
        clusters=clusters,
        loss="squared error" if task == "regression" else "log loss",
        candidate=float(np.average(losses["candidate"], weights=rows.weights)),
        champion=float(np.average(losses["champion"], weights=rows.weights)),
        difference=difference,
        low=difference - half if math.isfinite(half) else None,
        high=difference + half if math.isfinite(half) else None,
        level=level,
    )


def make_clusters(n_rows: int, is_ordered: bool) -> np.ndarray:
    """Make the cluster of each row, int [n_rows]: a block of consecutive rows if they are ordered by time."""
    return np.arange(n_rows) * TIME_BLOCKS // max(1, n_rows) if is_ordered else np.arange(n_rows)


def check_comparison(found: PairedComparison, params: RetrainParams) -> GateResult:
    """The whole interval of the difference is below the tolerated increase, a share of the champion's loss."""
    limit = params.max_loss_increase * found.champion
    figures = (
        f"{found.loss} {found.candidate:.4g}, the champion's {found.champion:.4g} on the same {found.rows:,} rows; "
        f"difference {found.difference:+.2g}"
    )
    if found.low is None or found.high is None:
        return GateResult(GATE, passed=False, reason=f"{figures}, too few rows for an interval; wait for more labels")
    reason = f"{figures} ({found.low:+.2g} to {found.high:+.2g}), tolerated {limit:+.2g}"
    if found.high <= limit:
        return GateResult(GATE, passed=True, reason=reason)
    advice = (
        "it is worse: keep the champion"
        if found.low > limit
        else "not decided: wait for more labels, or raise retrain.max_loss_increase"
    )
    return GateResult(GATE, passed=False, reason=f"{reason}; {advice}")


def check_kept_skill(task: Task, found: float | None, tested: float | None, params: RetrainParams) -> GateResult:
    """The candidate's skill on recent rows is at least a share of the champion's on its own test rows.

    Skill is ROC AUC − 0.5, or R². Labels that are swapped at random with probability q multiply ROC AUC − 0.5 of any
    model by 1 − 2q, or less if classes are unbalanced: 0.4 or less for 30%. A paired comparison cannot show that.

    Args:
        task: the kind of prediction.
        found: the candidate's headline measure on the recent rows; None if they leave it undefined.
        tested: the champion's headline measure on its own test rows, if it has one.
        params: the share.
    """
    name, chance = formatting.METRIC_NAMES[HEADLINE[task]], 0.0 if task == "regression" else 0.5
    if found is None:
        return GateResult(KEPT_SKILL, passed=False, reason=f"the rows leave {name} undefined; choose a later AS_OF")
    if tested is None or tested <= chance:
        return GateResult(KEPT_SKILL, passed=True, reason=f"{name} {found:.4f}; the champion's test has no skill")
    kept = (found - chance) / (tested - chance)
    reason = (
        f"{name} {found:.4f}, the champion's own test {tested:.4f}: {kept:.0%} of its skill is kept, "
        f"wanted {params.min_kept_skill:.0%}"
    )
    passed = kept >= params.min_kept_skill
    advice = "" if passed else "; check the newest labels; if they are right, overrule with OVERRIDE="
    return GateResult(KEPT_SKILL, passed=passed, reason=reason + advice)
