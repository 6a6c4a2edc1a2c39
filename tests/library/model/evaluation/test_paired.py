"""The paired comparison passes a model that is worse by the tolerated margin as rarely as its level says."""

import numpy as np
import pytest

from flywheel_ml.core.retraining_params import RetrainParams
from flywheel_ml.model.evaluation import paired
from flywheel_ml.model.evaluation.paired import LabelledRows

PARAMS = RetrainParams(max_loss_increase=0.1)


def draw(rng: np.random.Generator, n_rows: int, increase: float, correlation: float = 0.0) -> LabelledRows:
    """Draw rows on which the candidate's expected squared error is `increase` above the champion's, which is 1.

    The errors of neighbours have the given correlation, as those of rows in order of time may.
    """
    noise = rng.normal(size=(2, n_rows))
    for at in range(1, n_rows) if correlation else ():
        noise[:, at] = correlation * noise[:, at - 1] + np.sqrt(1 - correlation**2) * noise[:, at]
    shared, own = noise
    champion, candidate = shared, np.sqrt(1 + increase) * (0.9 * shared + np.sqrt(1 - 0.81) * own)
    return LabelledRows(
        np.zeros(n_rows),
        candidate[:, None],
        champion[:, None],
        np.ones(n_rows),
        paired.make_clusters(n_rows, is_ordered=bool(correlation)),
    )


def pass_rate(increase: float, correlation: float, runs: int = 1000, n_rows: int = 400) -> float:
    rng = np.random.default_rng(1)
    drawn = (draw(rng, n_rows, increase, correlation) for _ in range(runs))
    found = (paired.compare("regression", rows, PARAMS.confidence_level) for rows in drawn)
    return sum(paired.check_comparison(one, PARAMS).passed for one in found) / runs


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_candidate_that_is_worse_by_the_margin_seldom_passes(correlation: float) -> None:
    # 2.5% nominally; 1.5 points more for 1,000 runs and the skewness of squared errors.
    assert pass_rate(0.1, correlation, runs=1000 if not correlation else 400) <= 0.04


def test_candidate_that_is_better_by_the_margin_passes() -> None:
    assert pass_rate(-0.1, 0.0) >= 0.9


def test_interval_is_that_of_a_paired_t_test() -> None:
    rows = draw(np.random.default_rng(2), 50, 0.1)
    found = paired.compare("regression", rows, 0.95)
    losses = rows.candidate[:, 0] ** 2 - rows.champion[:, 0] ** 2
    half = 2.009575 * losses.std(ddof=1) / np.sqrt(50)
    assert found.difference == pytest.approx(losses.mean())
    assert found.high == pytest.approx(losses.mean() + half, rel=1e-6)


def test_verdict_says_worse_or_not_decided() -> None:
    worse = paired.compare("regression", draw(np.random.default_rng(3), 4000, 1.0), 0.95)
    assert paired.check_comparison(worse, PARAMS).reason.endswith("it is worse: keep the champion")
    few = paired.compare("regression", draw(np.random.default_rng(3), 20, 0.0), 0.95)
    assert "not decided: wait for more labels" in paired.check_comparison(few, PARAMS).reason
    one = paired.compare("regression", draw(np.random.default_rng(3), 1, 0.0), 0.95)
    assert "too few rows for an interval" in paired.check_comparison(one, PARAMS).reason


def test_kept_skill_of_swapped_labels_is_too_low() -> None:
    assert paired.check_kept_skill("binary", 0.58, 0.7, PARAMS).passed is False
    assert paired.check_kept_skill("binary", 0.677, 0.717, PARAMS).passed is True
    assert paired.check_kept_skill("binary", None, 0.7, PARAMS).passed is False
    assert paired.check_kept_skill("regression", 0.1, 0.5, PARAMS).passed is False
    assert paired.check_kept_skill("regression", 0.1, None, PARAMS).passed is True
