"""The estimate without labels equals what happens if scores are calibrated, and never decides the verdict."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flywheel_ml.core import metrics, profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.profile import PREDICTION, Counts
from flywheel_ml.monitoring.performance import estimation
from flywheel_ml.monitoring.performance.estimation import compute_expected_metrics, spread_bins

CONTRACT = Contract(
    name="drawn", columns=(Column(name="x", type="float"), Column(name="y", type="boolean", role="target"))
)
THRESHOLD = 0.4
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def count(reference: np.ndarray, scores: np.ndarray) -> Counts:
    before = profile.build(CONTRACT, {"x": np.zeros(len(reference))}, reference)
    return profile.count(before, {"x": np.zeros(len(scores))}, scores).columns[PREDICTION]


def test_estimate_equals_the_expected_metrics_of_drawn_labels() -> None:
    rng = np.random.default_rng(0)
    scores = np.sort(rng.beta(2, 3, 40_000))
    found = compute_expected_metrics(scores, np.ones(len(scores)), THRESHOLD)
    truth = (rng.random(len(scores)) < scores).astype(np.float64)
    output = np.stack((1 - scores, scores), axis=1)
    observed = metrics.compute_metrics("binary", truth, output, metrics.DecisionRule(THRESHOLD, 1.0, 1.0))
    for name, value in found.items():
        assert value == pytest.approx(observed[name], abs=0.01), name


def test_bins_cost_less_than_a_tenth_of_a_percent() -> None:
    rng = np.random.default_rng(1)
    reference, scores = rng.beta(1.5, 4, 20_000), np.sort(rng.beta(2, 3.5, 20_000))
    exact = compute_expected_metrics(scores, np.ones(len(scores)), THRESHOLD)
    binned = compute_expected_metrics(*spread_bins(count(reference, scores), THRESHOLD), THRESHOLD)
    assert binned == pytest.approx(exact, abs=0.001)


@pytest.mark.parametrize("values", [[0.0, 0.3, 1.0], [0.4], [0.0], [1.0], [0.2, 0.4, 0.400001]])
def test_repeated_scores_stay_exact(values: list[float]) -> None:
    scores = np.repeat(np.array(values, dtype=np.float32).astype(np.float64), 1000)
    found = spread_bins(count(scores, scores), THRESHOLD)
    assert found[1].sum() == len(scores)
    exact = compute_expected_metrics(scores, np.ones(len(scores)), THRESHOLD)
    assert compute_expected_metrics(*found, THRESHOLD) == pytest.approx(exact, abs=0.0003)


def test_all_rows_are_kept_beyond_the_reference() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(5000)
    values, weights = spread_bins(count(rng.uniform(0.4, 0.5, 5000), scores), THRESHOLD)
    assert weights.sum() == pytest.approx(5000)
    assert (np.diff(values) >= 0).all()
    assert np.average(values, weights=weights) == pytest.approx(scores.mean(), abs=0.05)


def test_regression_is_not_estimated(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"task": "regression"})
    found = estimation.estimate_performance(bundle.profile.columns[PREDICTION], manifest, {})
    assert (found.metrics, found.note) == ({}, estimation.NO_REGRESSION)


def test_window_without_scores_has_no_estimate(bundle: Bundle) -> None:
    counts = bundle.profile.columns[PREDICTION]
    empty = counts.model_copy(update={"counts": (0,) * len(counts.counts)})
    assert estimation.estimate_performance(empty, bundle.manifest, {}).metrics == {}


@pytest.mark.full
def test_estimate_equals_nannymls() -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "cbpe"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
