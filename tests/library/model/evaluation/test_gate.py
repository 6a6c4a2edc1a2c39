"""Each gate can say no alone, and nothing that was not measured passes."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle, Slice
from flywheel_ml.core.catalog import LINEAR
from flywheel_ml.core.contract import Columns, Task
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.params import GateParams
from flywheel_ml.model.evaluation import gate, speed
from flywheel_ml.model.evaluation.gate import Candidate

PARAMS = GateParams(
    min_score=0.6,
    min_skill_score=0.01,
    min_gain_over_linear=0.0,
    max_drop_from_champion=0.01,
    parity_tolerance=1e-5,
    min_slice_score=0.6,
    max_slice_drop=0.1,
    min_class_recall=0.3,
    max_calibration_error=0.05,
    coverage_tolerance=0.02,
    max_latency_ms=10.0,
    max_size_mb=5.0,
)
MEASURED: dict[str, Any] = {
    "latency_ms": 0.2,
    "size_mb": 0.5,
    "interval_level": 0.9,
    "input_columns": ("x",),
    "feature_us": {"x": 0.1},
    "unstable": (),
}
ROWS = {"train": 30_000, "validation": 10_000, "test": 10_000}
GOOD = {
    "test": {"roc_auc": 0.75, "log_loss": 0.5, "brier": 0.15, "calibration_error": 0.02},
    "linear": {"roc_auc": 0.7, "log_loss": 0.55},
    "prior": {"roc_auc": 0.5, "log_loss": 0.6},
}


OF_SLICES = ("no slice is left behind",)
COMPARISON: dict[str, Any] = {
    "rows": 40_000,
    "clusters": 40_000,
    "loss": 0.5,
    "prior": {"loss": 0.6, "gain": 0.1, "standard_error": 0.01, "p_value": 1e-9},
    "linear": {"loss": 0.55, "gain": 0.05, "standard_error": 0.01, "p_value": 0.9999},
}


@pytest.fixture
def manifest(bundle_path: Path) -> bundle.Manifest:
    facts = {"metrics": GOOD, "parity": 1e-7, "slices": (), "rows": ROWS}
    return compared(bundle.verify(bundle_path).model_copy(update=facts))


def compared(manifest: bundle.Manifest, prior: float = 1e-9, linear: float = 0.9999) -> bundle.Manifest:
    """With these p-values of the two tests on out-of-fold rows."""
    versus = {"prior": {**COMPARISON["prior"], "p_value": prior}, "linear": {**COMPARISON["linear"], "p_value": linear}}
    return manifest.model_copy(
        update={"comparison": bundle.BaselineComparison.model_validate({**COMPARISON, **versus})}
    )


def with_metric(manifest: bundle.Manifest, part: str, name: str, value: float | None) -> bundle.Manifest:
    table = {key: found for key, found in {**GOOD[part], name: value}.items() if found is not None}
    return manifest.model_copy(update={"metrics": {**GOOD, part: table}})


def measured(candidate: Candidate) -> Candidate:
    """With what the flow measures, where the candidate says nothing of it."""
    return candidate._replace(**{name: value for name, value in MEASURED.items() if getattr(candidate, name) is None})


def refusals(candidate: Candidate) -> Mapping[str, str]:
    return {check.gate: check.reason for check in gate.check_gates(measured(candidate), PARAMS) if not check.passed}


def test_a_good_model_passes_every_gate(manifest: bundle.Manifest) -> None:
    assert not refusals(Candidate(manifest))
    assert not refusals(Candidate(manifest, champion_score=0.759))
    assert len(gate.check_gates(Candidate(manifest), PARAMS)) == len(gate.STANDARD_GATES)


def test_a_model_below_the_floor_is_refused(manifest: bundle.Manifest) -> None:
    poor = manifest.model_copy(
        update={"metrics": {**GOOD, "test": {**GOOD["test"], "roc_auc": 0.59}, "linear": {"roc_auc": 0.58}}}
    )
    assert refusals(Candidate(poor)) == {"minimum score": "ROC AUC 0.5900, at least 0.6"}


@pytest.mark.parametrize("p_value", [0.05, 0.5, 1.0])
def test_model_not_significantly_better_than_the_prior_is_refused(manifest: bundle.Manifest, p_value: float) -> None:
    assert list(refusals(Candidate(compared(manifest, prior=p_value)))) == ["better than the class prior"]
    assert not refusals(Candidate(compared(manifest, prior=0.049)))


@pytest.mark.parametrize("p_value", [0.0, 0.01, 0.049])
def test_model_significantly_worse_than_the_linear_is_refused(manifest: bundle.Manifest, p_value: float) -> None:
    assert list(refusals(Candidate(compared(manifest, linear=p_value)))) == ["not worse than the linear baseline"]
    assert not refusals(Candidate(compared(manifest, linear=0.05)))


def test_model_without_a_comparison_is_refused(manifest: bundle.Manifest) -> None:
    found = refusals(Candidate(manifest.model_copy(update={"comparison": None})))
    assert list(found) == ["better than the class prior", "not worse than the linear baseline"]
    assert set(found.values()) == {"the bundle has no comparison on out-of-fold rows; train again"}


def test_margins_on_the_test_rows_are_asked_where_params_say_so(manifest: bundle.Manifest) -> None:
    assert list(refusals(Candidate(with_metric(manifest, "test", "log_loss", 0.595)))) == [
        "better than the class prior"
    ]
    poor = with_metric(manifest, "linear", "roc_auc", 0.7501)
    assert list(refusals(Candidate(poor))) == ["not worse than the linear baseline"]
    nothing = {"min_score": None, "min_skill_score": None, "min_gain_over_linear": None, "min_slice_score": None}
    lenient = PARAMS.model_copy(update={**nothing, "max_slice_drop": None})
    useless = poor.model_copy(update={"metrics": {"test": {**GOOD["test"], "roc_auc": 0.1, "log_loss": 9.0}}})
    checks = gate.check_gates(measured(Candidate(useless, champion_score=0.1)), lenient)
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("task", list(LINEAR))
def test_refusal_by_the_linear_baseline_names_its_estimator(manifest: bundle.Manifest, task: Task) -> None:
    headline = HEADLINE[task]
    metrics = {**GOOD, "test": {headline: 0.7}, "linear": {headline: 0.72}}
    poor = manifest.model_copy(update={"task": task, "metrics": metrics})
    reason = refusals(Candidate(poor))["not worse than the linear baseline"]
    assert "-0.0200, wanted +0" in reason
    assert f"`train.estimator: {LINEAR[task]}` in params.yaml would be better" in reason


def test_model_below_champion_beyond_the_margin_is_refused(manifest: bundle.Manifest) -> None:
    assert list(refusals(Candidate(manifest, champion_score=0.7611))) == ["keeps up with the champion"]


def test_a_model_that_just_reaches_what_is_asked_passes(manifest: bundle.Manifest) -> None:
    params = PARAMS.model_copy(update={"min_score": 0.5, "min_skill_score": 0.5, "max_drop_from_champion": 0.25})
    metrics = {
        "test": {**GOOD["test"], "roc_auc": 0.5, "log_loss": 0.25},
        "linear": {"roc_auc": 0.5},
        "prior": {"log_loss": 0.5},
    }
    candidate = measured(Candidate(manifest.model_copy(update={"metrics": metrics}), champion_score=0.75))
    assert [check for check in gate.check_gates(candidate, params) if not check.passed] == []


def test_a_model_is_refused_where_the_champion_cannot_be_compared(manifest: bundle.Manifest) -> None:
    found = refusals(Candidate(manifest, champion_problem="its artifacts are gone"))
    assert found == {"keeps up with the champion": "the champion cannot be compared: its artifacts are gone"}


def test_bundle_that_differs_from_scikit_learn_is_refused(manifest: bundle.Manifest) -> None:
    wrong = manifest.model_copy(update={"parity": 0.45})
    assert list(refusals(Candidate(wrong))) == ["same answers as scikit-learn"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize(
    ("part", "name", "gates"),
    [
        (
            "test",
            "roc_auc",
            {"minimum score", "not worse than the linear baseline", "keeps up with the champion", *OF_SLICES},
        ),
        ("test", "log_loss", {"better than the class prior"}),
        ("linear", "roc_auc", {"not worse than the linear baseline"}),
        ("prior", "log_loss", {"better than the class prior"}),
    ],
)
def test_what_was_not_measured_never_passes(
    manifest: bundle.Manifest, part: str, name: str, gates: set[str], value: float | None
) -> None:
    candidate = Candidate(with_metric(manifest, part, name, value), champion_score=0.7)
    found = refusals(candidate)
    assert set(found) == gates
    assert all(name in reason for reason in found.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_champion_or_parity_never_passes(manifest: bundle.Manifest, value: float) -> None:
    wrong = manifest.model_copy(update={"parity": value})
    assert set(refusals(Candidate(wrong, champion_score=value))) == {
        "keeps up with the champion",
        "same answers as scikit-learn",
    }


def test_a_gate_is_added_by_one_function_and_one_row(
    manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_enough(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
        found = len(candidate.manifest.numeric)
        return found < 1, f"{found} numeric inputs, allowed 0"

    monkeypatch.setitem(gate.STANDARD_GATES, "small enough", small_enough)
    assert refusals(Candidate(manifest)) == {"small enough": f"{len(manifest.numeric)} numeric inputs, allowed 0"}


def test_the_thresholds_come_from_the_parameters(manifest: bundle.Manifest) -> None:
    strict = PARAMS.model_copy(update={"min_score": 0.9})
    found = [check.gate for check in gate.check_gates(measured(Candidate(manifest)), strict) if not check.passed]
    assert found == ["minimum score"]


def part(value: str, rows: int, enough: bool = True, column: str = "place", **metrics: float) -> Slice:
    return Slice(column=column, value=value, rows=rows, enough=enough, metrics=metrics)


def answer(name: str, candidate: Candidate) -> gate.GateResult:
    (found,) = [check for check in gate.check_gates(measured(candidate), PARAMS) if check.gate == name]
    return found


def sliced(manifest: bundle.Manifest, *parts: Slice) -> Candidate:
    return Candidate(manifest.model_copy(update={"slices": parts}))


def of_numbers(manifest: bundle.Manifest, *parts: Slice, **test: float) -> Candidate:
    found = {"r2": 0.8, "rmse": 2.0, "coverage": 0.9, **test}
    tables = {"test": found, "linear": {"r2": 0.7}, "prior": {"rmse": 4.5}}
    facts = {"task": "regression", "classes": (), "metrics": tables, "slices": parts}
    return Candidate(manifest.model_copy(update=facts))


def of_three(manifest: bundle.Manifest, *parts: Slice, **test: float) -> Candidate:
    tables = {**GOOD, "test": {**GOOD["test"], "accuracy": 0.7, **test}}
    facts = {"task": "multiclass", "classes": ("a", "b", "c"), "metrics": tables, "slices": parts}
    return Candidate(manifest.model_copy(update=facts))


def test_a_slice_that_falls_behind_is_refused_and_named(manifest: bundle.Manifest) -> None:
    fine, poor = part("X", 5000, roc_auc=0.76, prevalence=0.3), part("Y", 4000, roc_auc=0.55, prevalence=0.3)
    assert not refusals(sliced(manifest, fine))
    found = refusals(sliced(manifest, fine, poor, part("Z", 3, enough=False)))
    assert list(found) == ["no slice is left behind"]
    assert "place 'Y' (4,000 rows): ROC AUC 0.5500" in found["no slice is left behind"]
    assert "wanted 0.6500; 1 too small to judge" in found["no slice is left behind"]


def test_small_slice_has_a_tolerance_for_chance(manifest: bundle.Manifest) -> None:
    assert not refusals(sliced(manifest, part("Y", 40, roc_auc=0.55, prevalence=0.3)))
    good = answer("no slice is left behind", sliced(manifest, part("Y", 40, roc_auc=0.98, prevalence=0.3)))
    assert "by chance up to 1.0000" in good.reason, "no measure is more than perfect"
    alone = answer("no slice is left behind", sliced(manifest, part("Y", 400, prevalence=0.0)))
    assert alone == (alone.gate, True, "does not apply: none of 1 slices can be judged; 1 of one class alone")
    assert "lists no column" in answer("no slice is left behind", sliced(manifest)).reason


def test_regression_slice_with_low_r2_and_large_errors_is_refused(manifest: bundle.Manifest) -> None:
    flat, large = part("flat", 900, r2=-3.0, rmse=0.5), part("large", 900, r2=0.75, rmse=9.0)
    assert not refusals(of_numbers(manifest, flat, large, part("constant", 900, rmse=0.0)))
    assert list(refusals(of_numbers(manifest, flat, part("far off", 900, r2=-0.5, rmse=6.0)))) == [
        "no slice is left behind"
    ]


def test_a_class_that_is_hardly_ever_found_is_refused(manifest: bundle.Manifest) -> None:
    target = manifest.target
    fine, few = part("a", 900, column=target, accuracy=0.8), part("c", 4, False, target, accuracy=0.0)
    assert not refusals(of_three(manifest, fine, few))
    found = refusals(of_three(manifest, fine, part("b", 900, column=target, accuracy=0.2), few))
    assert found == {
        "recall of every class": "the worst of 2 classes is 'b' (900 rows): recall 0.2000, wanted 0.3; "
        "1 classes too small to judge"
    }
    assert answer("recall of every class", Candidate(manifest)).reason == "does not apply to two classes"


@pytest.mark.parametrize("make", [lambda m, **t: Candidate(with_metric(m, "test", *next(iter(t.items())))), of_three])
def test_probabilities_that_are_far_off_are_refused(manifest: bundle.Manifest, make: Callable[..., Candidate]) -> None:
    assert list(refusals(make(manifest, calibration_error=0.1))) == ["calibrated probabilities"]
    few = make(manifest.model_copy(update={"rows": {**ROWS, "test": 60}}), calibration_error=0.1)
    assert not refusals(few), "sixty rows in fifteen bins are off by as much by chance"


def test_intervals_that_hold_the_truth_too_seldom_are_refused(manifest: bundle.Manifest) -> None:
    assert not refusals(of_numbers(manifest, coverage=0.88))
    assert not refusals(of_numbers(manifest, coverage=1.0)), "ties and errors of zero make them hold more"
    assert list(refusals(of_numbers(manifest, coverage=0.86))) == ["honest intervals"]
    few = manifest.model_copy(update={"rows": {**ROWS, "validation": 40, "test": 40}})
    assert not refusals(of_numbers(few, coverage=0.8))
    assert answer("honest intervals", Candidate(manifest)).reason == "does not apply to two classes"
    assert answer("calibrated probabilities", of_numbers(manifest)).reason == "does not apply to numbers"


def test_a_slow_or_large_bundle_is_refused(manifest: bundle.Manifest) -> None:
    assert list(refusals(Candidate(manifest, latency_ms=10.1))) == ["single-row latency"]
    assert list(refusals(Candidate(manifest, size_mb=5.1))) == ["bundle size"]
    failed = [check.gate for check in gate.check_gates(Candidate(manifest), PARAMS) if not check.passed]
    unmeasured = ["only permitted columns", "cost of every feature", "numerically stable", "single-row latency"]
    assert failed == [*unmeasured, "bundle size"], "what nobody measured never passes"


def test_speed_and_size_are_measured_of_the_bundle_itself(
    bundle_path: Path, columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle_path)
    assert 0 < speed.measure_latency_ms(opened, columns) < 20
    assert speed.measure_size_mb(bundle_path) == sum(path.stat().st_size for path in bundle_path.iterdir()) / 1e6
    predict = opened.predict

    def slow(columns: Columns) -> object:
        time.sleep(0.002)
        return predict(columns)

    monkeypatch.setattr(opened, "predict", slow)
    monkeypatch.setattr(speed, "ROWS", 10)
    assert speed.measure_latency_ms(opened, columns) > 2
