"""The metrics agree with their definitions and are absent where undefined."""

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flywheel_ml.core import metrics
from flywheel_ml.core.contract import Task


def scored(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores and the labels drawn from them."""
    rng = np.random.default_rng(seed)
    scores = rng.random(rows).astype(np.float32)
    return rng.random(rows) < scores, scores


def cost(labels: np.ndarray, scores: np.ndarray, threshold: float, alarm: float, miss: float) -> float:
    counts = metrics.count_confusion(labels, scores, threshold)
    return counts.false_positive * alarm + counts.false_negative * miss


def test_a_worked_example_gives_the_numbers_computed_by_hand() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    found = metrics.compute_binary_metrics(labels, scores, threshold=0.5, false_positive=2.0, false_negative=3.0)
    assert found["accuracy"] == found["precision"] == found["recall"] == found["f1"] == 0.5
    assert found["roc_auc"] == 0.75
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found["mean_cost"] == (2.0 + 3.0) / 4
    assert found["log_loss"] == pytest.approx(-np.mean(np.log([0.9, 0.4, 0.4, 0.9])))
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_perfect_and_useless_models_reach_the_extremes() -> None:
    labels = np.array([False, True] * 50)
    perfect = metrics.compute_binary_metrics(labels, labels.astype(float), 0.5)
    assert perfect["roc_auc"] == perfect["average_precision"] == perfect["f1"] == 1.0
    assert perfect["brier"] == perfect["calibration_error"] == perfect["mean_cost"] == 0.0
    useless = metrics.compute_binary_metrics(labels, np.full(100, 0.5), 0.5)
    assert useless["roc_auc"] == 0.5
    assert useless["log_loss"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("labels", [np.zeros(20), np.ones(20), np.empty(0)], ids=["no 1", "no 0", "no row"])
def test_undefined_metrics_are_absent_and_the_rest_is_valid_json(labels: np.ndarray) -> None:
    found = metrics.compute_binary_metrics(labels, np.linspace(0, 1, len(labels)), 0.5)
    assert "roc_auc" not in found
    json.dumps([found, metrics.compute_binary_curves(labels, np.linspace(0, 1, len(labels)))], allow_nan=False)


def test_threshold_without_positives_has_no_precision() -> None:
    found = metrics.compute_binary_metrics(np.array([0, 1]), np.array([0.1, 0.2]), 0.9)
    assert "precision" not in found
    assert found["recall"] == found["f1"] == 0.0


def test_calibration_error_is_small_for_calibrated_scores_only() -> None:
    labels, scores = scored(20_000)
    assert metrics.calibration_error(labels, scores) < 0.02
    assert metrics.calibration_error(labels, np.clip(scores + 0.2, 0, 1)) > 0.1


def test_the_order_of_rows_does_not_move_the_calibration_bins() -> None:
    labels, scores = scored(2000)
    scores = scores.round(1)
    order = np.random.default_rng(1).permutation(2000)
    a, b = metrics.reliability(labels, scores), metrics.reliability(labels[order], scores[order])
    assert a.rows.tolist() == b.rows.tolist()
    assert a.observed.tolist() == b.observed.tolist()


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=40),
    alarm=st.integers(1, 5),
    miss=st.integers(1, 5),
)
def test_no_threshold_is_cheaper_than_the_chosen_one(rows: list[tuple[bool, int]], alarm: int, miss: int) -> None:
    labels = np.array([label for label, _ in rows])
    assume(len(np.unique(labels)) == 2)
    scores = np.array([score / 10 for _, score in rows], dtype=np.float32)
    chosen = metrics.choose_threshold(labels, scores, alarm, miss)
    assert 0 <= chosen <= 1
    cheapest = min(cost(labels, scores, threshold, alarm, miss) for threshold in np.linspace(0, 1, 101))
    assert cost(labels, scores, chosen, alarm, miss) <= cheapest


def test_threshold_decides_alike_in_float32_and_float64() -> None:
    labels, scores = scored(5000)
    chosen = metrics.choose_threshold(labels, scores, 1.0, 3.0)
    assert ((scores >= chosen) == (scores.astype(np.float64) >= chosen)).all()
    assert chosen == pytest.approx(0.25, abs=0.05)


def test_equally_cheap_thresholds_are_chosen_by_the_costs() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.7, 0.8])
    assert metrics.choose_threshold(labels, scores, 1.0, 1.0) == 0.7
    tied = np.array([0, 1, 0, 1]), np.array([0.2, 0.4, 0.6, 0.8])
    assert metrics.choose_threshold(*tied, 1.0, 1.0) == 0.4
    assert metrics.choose_threshold(np.empty(0), np.empty(0), 1.0, 3.0) == 0.25


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 10), st.integers(1, 9)), min_size=2, max_size=20),
    alarm=st.integers(1, 5),
    miss=st.integers(1, 5),
)
def test_rounding_of_weights_does_not_move_the_threshold(
    rows: list[tuple[bool, int, int]], alarm: int, miss: int
) -> None:
    labels, tenths, times = (np.array(column) for column in zip(*rows, strict=True))
    scores = (tenths / 10).astype(np.float32)
    repeated = metrics.choose_threshold(labels.repeat(times), scores.repeat(times), alarm, miss)
    assert metrics.choose_threshold(labels, scores, alarm, miss, times / 10) == repeated


def test_threshold_of_one_class_is_the_calibrated_one() -> None:
    scores = np.array([0.001, 0.002, 0.6])
    assert metrics.choose_threshold(np.zeros(3), scores, 1.0, 1.0) == 0.5
    assert metrics.choose_threshold(np.ones(3), scores, 1.0, 3.0) == 0.25


def test_curves_keep_their_ends_and_at_most_200_points() -> None:
    labels, scores = scored(50_000)
    found = metrics.compute_binary_curves(labels, scores)
    assert {name: len(points) <= 200 for name, points in found.items()} == dict.fromkeys(found, True)
    assert found["roc"][0] == {"false_positive_rate": 0.0, "true_positive_rate": 0.0}
    assert found["roc"][-1] == {"false_positive_rate": 1.0, "true_positive_rate": 1.0}
    xs = [point["false_positive_rate"] for point in found["roc"]]
    area = np.trapezoid([point["true_positive_rate"] for point in found["roc"]], xs)
    assert area == pytest.approx(metrics.compute_binary_metrics(labels, scores, 0.5)["roc_auc"], abs=0.002)
    assert sum(point["rows"] for point in found["calibration"]) == 50_000


def test_multiclass_metrics_rank_correct_above_prior() -> None:
    truth = np.array([0, 1, 2] * 50)
    perfect = metrics.compute_multiclass_metrics(truth, np.eye(3)[truth])
    assert perfect["accuracy"] == perfect["macro_f1"] == perfect["roc_auc"] == 1.0
    assert perfect["calibration_error"] == 0.0
    prior = metrics.compute_multiclass_metrics(truth, np.full((150, 3), 1 / 3))
    assert prior["roc_auc"] == 0.5
    assert prior["log_loss"] == pytest.approx(np.log(3))


def test_metrics_skip_classes_that_do_not_occur() -> None:
    truth, output = (
        np.array([0, 0, 1, 1]),
        np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]]),
    )
    found = metrics.compute_multiclass_metrics(truth, output)
    assert found["accuracy"] == 0.75
    assert found["lowest_recall"] == 0.5
    assert found["roc_auc"] == 1.0
    assert "roc_auc" not in metrics.compute_multiclass_metrics(np.zeros(3, dtype=int), output[:3])
    assert metrics.compute_multiclass_metrics(truth[:0], output[:0]) == {}


def test_regression_metrics_of_the_mean_have_r2_of_zero() -> None:
    truth = np.array([1.0, 2.0, 3.0, 6.0])
    value = np.full(4, truth.mean())
    found = metrics.compute_regression_metrics(truth, np.stack((value, value - 1, value + 1), axis=1))
    assert found == {
        "mae": 1.5,
        "rmse": pytest.approx(truth.std()),
        "bias": 0.0,
        "coverage": 0.5,
        "interval_width": 2.0,
        "r2": 0.0,
    }
    shifted = metrics.compute_regression_metrics(truth, np.stack((truth + 2, truth, truth + 4), axis=1))
    assert (shifted["bias"], shifted["mae"], shifted["coverage"]) == (2.0, 2.0, 1.0)
    assert "r2" not in metrics.compute_regression_metrics(np.ones(3), np.ones((3, 3)))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_conformal_interval_has_its_nominal_coverage(level: float) -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        known, new = rng.exponential(size=60), rng.exponential(size=60)
        half = metrics.conformal_half_width(known, np.ones(60), level)
        held.append((np.abs(new - 1) <= half).mean())
    assert np.mean(held) == pytest.approx(level + (1 - level) / 61, abs=0.03)
    assert np.mean(held) > level - 0.01


def test_conformal_interval_of_few_rows_covers_every_error() -> None:
    assert metrics.conformal_half_width(np.array([0.0, 5.0]), np.zeros(2), 0.9) == 5.0


@pytest.mark.parametrize(("task", "output"), [("multiclass", np.empty((0, 3))), ("regression", np.empty((0, 3)))])
def test_no_rows_have_no_measures_and_no_curves(task: Task, output: np.ndarray) -> None:
    assert metrics.compute_metrics(task, np.empty(0), output) == {}
    assert not any(metrics.compute_curves(task, np.empty(0), output).values())


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_weights_count_as_repeated_rows(task: Task) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 4, 300)
    if task == "regression":
        truth, value = rng.normal(size=(2, 300))
        output = np.stack((value, value - 1, value + 1), axis=1)
    else:
        classes = 2 if task == "binary" else 3
        truth, output = rng.integers(0, classes, 300).astype(float), rng.dirichlet(np.ones(classes), 300)
    decision = metrics.DecisionRule(0.5, 1.0, 3.0)
    weighed = metrics.compute_metrics(task, truth, output, decision, weights.astype(float))
    repeated = metrics.compute_metrics(task, np.repeat(truth, weights), np.repeat(output, weights, axis=0), decision)
    # Bins of equal mass are cut by rows, not by their weight.
    for name in repeated.keys() - {"calibration_error", "recentered_calibration_error"}:
        assert weighed[name] == pytest.approx(repeated[name]), name
    assert metrics.compute_metrics(task, truth, output, decision, np.ones(300)) == pytest.approx(
        metrics.compute_metrics(task, truth, output, decision)
    )


def test_recentered_calibration_error_ignores_base_rate_shift() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=20_000)
    labels = rng.uniform(size=20_000) < 1 / (1 + np.exp(-odds))
    shifted = metrics.compute_binary_metrics(labels, 1 / (1 + np.exp(-(odds + 1))), 0.5)
    assert shifted["calibration_error"] > 0.15
    assert shifted["recentered_calibration_error"] < 0.02
    steep = metrics.compute_binary_metrics(labels, 1 / (1 + np.exp(-3 * odds)), 0.5)
    assert steep["recentered_calibration_error"] == pytest.approx(steep["calibration_error"], abs=0.01)
