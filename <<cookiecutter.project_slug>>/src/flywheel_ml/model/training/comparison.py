"""Tests on out-of-fold rows: is the model better than the class prior, and not worse than the linear baseline?"""

from typing import Any

import numpy as np
from scipy.stats import t as student

from flywheel_ml.core.contract import Task
from flywheel_ml.model.training.selection import OutOfFold, compute_mean_and_error, compute_row_losses


def compare(task: Task, rows: OutOfFold) -> dict[str, Any]:
    """Compare the mean losses of model, prior and linear baseline, and the gain of the model over each.

    `gain` is the mean of the paired differences of losses, `p_value` of `prior` that of the hypothesis that the model
    is no better than the prior, of `linear` that it is no worse than the linear baseline; both one-sided, by a t test
    with cluster-robust standard errors and one degree of freedom less than there are clusters.
    """
    losses = {
        name: compute_row_losses(task, rows.truth, answers)
        for name, answers in (("model", rows.answers), ("prior", rows.prior), ("linear", rows.linear))
    }
    found: dict[str, Any] = {
        "rows": len(rows.truth),
        "loss": float(np.average(losses["model"], weights=rows.weights)),
    }
    for name, side in (("prior", -1.0), ("linear", 1.0)):
        gain, error, clusters = compute_mean_and_error(losses[name] - losses["model"], rows.weights, rows.clusters)
        statistic = gain / error if error > 0 else (0.0 if gain == 0 else np.inf * np.sign(gain))
        found[name] = {
            "loss": float(np.average(losses[name], weights=rows.weights)),
            "gain": gain,
            "standard_error": error if np.isfinite(error) else None,
            "p_value": float(student.cdf(side * statistic, max(1, clusters - 1))),
        }
        found["clusters"] = clusters
    return found
