"""Probabilities are calibrated where that helps on rows that the calibrator has not seen, and left alone elsewhere."""

import numpy as np
import pytest

from flywheel_ml.core import calibration, metrics
from flywheel_ml.core.calibration import Calibration
from flywheel_ml.model.training import calibrate
from flywheel_ml.model.training.selection import OutOfFold


def rows(probabilities: np.ndarray, truth: np.ndarray) -> OutOfFold:
    n_rows = len(truth)
    prior = np.tile(np.bincount(truth.astype(int)) / n_rows, (n_rows, 1))
    places, ones = np.arange(n_rows), np.ones(n_rows)
    return OutOfFold(places, truth, ones, places, np.zeros(n_rows, dtype=bool), probabilities, prior, prior)


def binary(n_rows: int, slope: float, shift: float = 0.0, seed: int = 0) -> OutOfFold:
    """Scores whose log odds are `slope` times the true ones, and shifted."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=n_rows) * 1.5
    truth = (rng.uniform(size=n_rows) < calibration.sigmoid(odds)).astype(float)
    score = calibration.sigmoid(slope * odds + shift)
    return rows(np.stack((1 - score, score), axis=1), truth)


def multiclass(n_rows: int, power: float) -> OutOfFold:
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(3), size=n_rows)
    truth = np.array([rng.choice(3, p=row) for row in true], dtype=float)
    sharp = true**power
    return rows(sharp / sharp.sum(axis=1, keepdims=True), truth)


def test_calibrated_probabilities_are_left_alone() -> None:
    found = calibrate.choose(binary(2000, 1.0))
    assert found.calibration.method == "none"
    assert set(found.losses) == {"none", "temperature", "sigmoid", "isotonic"}


@pytest.mark.parametrize(
    ("given", "method"),
    [(binary(2000, 3.0), "temperature"), (binary(2000, 1.0, 1.5), "sigmoid"), (multiclass(2000, 3.0), "temperature")],
)
def test_overconfidence_and_shift_are_corrected(given: OutOfFold, method: str) -> None:
    found = calibrate.choose(given)
    assert found.calibration.method == method
    before = metrics.calibration_error(given.truth == 1, given.answers[:, 1])
    after = metrics.calibration_error(given.truth == 1, found.out_of_fold.answers[:, 1])
    assert after < before / 2
    assert found.losses[method] < found.losses["none"]


def test_isotonic_wins_where_the_curve_bends() -> None:
    given = binary(6000, 1.0)
    bent = np.where(given.answers[:, 1] > 0.5, 0.9 + given.answers[:, 1] / 10, given.answers[:, 1] / 10)
    found = calibrate.choose(given._replace(answers=np.stack((1 - bent, bent), axis=1)))
    assert found.calibration.method == "isotonic"


@pytest.mark.parametrize("n_rows", [50, 99])
def test_too_few_rows_calibrate_nothing(n_rows: int) -> None:
    found = calibrate.choose(binary(n_rows, 4.0))
    assert (found.calibration.method, found.losses) == ("none", {})


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "isotonic"])
@pytest.mark.parametrize("given", [binary(500, 2.0), multiclass(500, 2.0)], ids=["binary", "multiclass"])
def test_row_gets_the_same_bits_in_any_batch_and_sums_to_one(method: calibration.Method, given: OutOfFold) -> None:
    fitted = calibrate.fit(method, given.answers, given.truth.astype(int), given.weights)
    whole = fitted.apply(given.answers)
    assert whole.sum(axis=1) == pytest.approx(1)
    assert ((whole >= 0) & (whole <= 1)).all()
    for size in (1, 2, 7, 33):
        for at in range(0, 500 - size, 61):
            assert fitted.apply(given.answers[at : at + size]).tobytes() == whole[at : at + size].tobytes()
    assert Calibration.model_validate_json(fitted.model_dump_json()).apply(given.answers).tobytes() == whole.tobytes()


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "isotonic"])
def test_certain_answers_stay_finite(method: calibration.Method) -> None:
    given = binary(300, 1.0)
    fitted = calibrate.fit(method, given.answers, given.truth.astype(int), given.weights)
    assert np.isfinite(fitted.apply(np.array([[0.0, 1.0], [1.0, 0.0]]))).all()


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "isotonic"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_separated_rows_do_not_make_answers_certain(method: calibration.Method, n_classes: int) -> None:
    """One wrong answer of such a model would cost more than all the others gain."""
    truth = np.arange(300) % n_classes
    answers = np.where(np.eye(n_classes, dtype=bool)[truth], 0.8, 0.2 / (n_classes - 1))
    found = calibrate.fit(method, answers, truth, np.ones(300)).apply(answers)
    assert found.max() < 1 - 1 / 500


def test_scores_without_order_never_turn_around() -> None:
    given = binary(500, 1.0)
    upside_down = given._replace(answers=given.answers[:, ::-1].copy())
    fitted = calibrate.fit("sigmoid", upside_down.answers, given.truth.astype(int), given.weights)
    assert fitted.slopes == (0.0,)


def test_in_time_the_first_part_is_answered_without() -> None:
    given = binary(1000, 3.0)
    found = calibrate.choose(given, in_time=True)
    assert found.calibration.method == "temperature"
    assert found.out_of_fold.answers[:200].tobytes() == given.answers[:200].tobytes()
    assert found.out_of_fold.answers[200:].tobytes() != given.answers[200:].tobytes()


def test_isotonic_curve_is_never_steeper_than_float32_can_follow() -> None:
    """A saturated network: all probabilities lie within 1e-5 of 0 or 1, and the curve would be nearly vertical."""
    rng = np.random.default_rng(0)
    positive = 1 / (1 + np.exp(-rng.normal(0, 12, 2000)))
    truth = (rng.random(2000) < 0.2 + 0.6 * (positive > 0.5)).astype(int)
    fitted = calibrate.fit("isotonic", np.stack((1 - positive, positive), axis=1), truth, np.ones(2000))
    (curve,) = fitted.curves
    assert (np.diff(curve.y) <= 50 * np.diff(curve.x) + 1e-12).all()
    assert (np.diff(curve.y) >= 0).all()
