"""Cost of features, stability, inclusion, permitted columns and computing performance: each can block."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle, Manifest, Slice
from flywheel_ml.core.contract import Columns
from flywheel_ml.core.features import FeatureFunction
from flywheel_ml.core.params import GateParams, Params
from flywheel_ml.model.evaluation import feature_rules, gate, inclusion, stability
from flywheel_ml.model.evaluation.compute import ComputeFigures, find_regressions, run_calibration_loop
from flywheel_ml.model.evaluation.measure import measure_candidate
from flywheel_ml.testing.faulty_models import break_model
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import IntegrityError

LIMITS = GateParams(max_drop_from_champion=0.01, parity_tolerance=1e-5, max_group_gap=0.1, max_feature_us=100.0)
FIGURES = ComputeFigures(key="a", calibration_ms=10.0, latency_cpu_ms=0.2, train_cpu_us=50.0, peak_mb=500.0)


class SlowFeature(Bundle):
    """A bundle with a derived feature that takes a millisecond a row."""

    @property
    def derived(self) -> dict[str, FeatureFunction]:
        def slow_feature(columns: Columns) -> np.ndarray:
            time.sleep(0.001 * len(columns["distance"]))
            return columns["distance"]

        return {"slow_feature": slow_feature}


@pytest.fixture(scope="module")
def few(columns: Columns) -> dict[str, np.ndarray]:
    return {name: values[:20] for name, values in columns.items()}


@pytest.fixture(scope="module")
def manifest(bundle_path: Path) -> Manifest:
    return bundle.verify(bundle_path)


def group(name: str, rows: int = 10_000, column: str = "origin", **measures: float) -> Slice:
    return Slice(column=column, value=name, rows=rows, enough=True, metrics={"prevalence": 0.5, **measures})


def check(manifest: Manifest, *groups: Slice, **limits: Any) -> tuple[bool, str]:
    candidate = gate.Candidate(manifest.model_copy(update={"slices": groups}), groups=("origin",))
    return inclusion.check_groups(candidate, LIMITS.model_copy(update=limits))


def test_bundle_passes_the_measured_gates(bundle_path: Path, few: dict[str, np.ndarray], params: Params) -> None:
    opened = Bundle.open(bundle_path)
    candidate = gate.Candidate(opened.manifest, **measure_candidate(opened, few, params.evaluate))
    assert candidate.feature_us is not None
    assert candidate.feature_us.keys() == {column.name for column in opened.contract.inputs}
    for one in (feature_rules.check_cost, feature_rules.check_permitted, stability.check_stability):
        assert one(candidate, LIMITS)[0]


def test_slow_feature_is_refused(bundle_path: Path, few: dict[str, np.ndarray]) -> None:
    opened = SlowFeature.open(bundle_path)
    candidate = gate.Candidate(opened.manifest, feature_us=feature_rules.measure_feature_cost(opened, few))
    passed, reason = feature_rules.check_cost(candidate, LIMITS)
    assert not passed
    assert "'slow_feature'" in reason


@pytest.mark.parametrize(
    "check_one", [feature_rules.check_cost, feature_rules.check_permitted, stability.check_stability]
)
def test_gate_refuses_what_was_not_measured(manifest: Manifest, check_one: gate.Gate) -> None:
    with pytest.raises(gate.MissingMeasure):
        check_one(gate.Candidate(manifest), LIMITS)


def test_forbidden_column_is_refused_by_name(manifest: Manifest) -> None:
    forbidding = LIMITS.model_copy(update={"forbidden_columns": ("age", "carrier")})
    candidate = gate.Candidate(manifest, input_columns=("carrier", "origin"))
    assert feature_rules.check_permitted(candidate, forbidding) == (
        False,
        "it uses the forbidden column 'carrier'; give it the role ignored in contract.yaml",
    )


def test_model_with_nan_is_unstable(bundle_path: Path, tmp_path: Path, few: dict[str, np.ndarray]) -> None:
    folder = ServingFolder(tmp_path, bundle_path)
    folder.add("nan", model=break_model((bundle_path / bundle.MODEL).read_bytes(), "NaN"))
    found = stability.find_unstable(Bundle.open(folder.bundle("nan")), few)
    assert found[0] == "ordinary rows: NaN or infinity as prediction"


class OffsetBundle(Bundle):
    """A bundle whose probabilities of two classes are moved apart."""

    offset = 0.0

    def run(self, inputs: Any) -> np.ndarray:
        """Run the model and move its probabilities beyond 0 and 1."""
        is_first = np.arange(len(super().run(inputs))) % 2 == 0
        return np.stack(
            [np.where(is_first, 1 + self.offset, -self.offset), np.where(is_first, -self.offset, 1)], axis=1
        )


@pytest.mark.parametrize(("offset", "is_stable"), [(1e-7, True), (0.01, False)])
def test_probability_outside_its_range_is_unstable_beyond_rounding(
    bundle_path: Path, few: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, offset: float, is_stable: bool
) -> None:
    """Forests add up probabilities in float32."""
    monkeypatch.setattr(OffsetBundle, "offset", offset)
    found = stability.find_unstable(OffsetBundle.open(bundle_path), few)
    assert ("ordinary rows: a probability outside 0 to 1" not in found) is is_stable


def test_model_with_a_missing_operator_does_not_open(bundle_path: Path, tmp_path: Path) -> None:
    folder = ServingFolder(tmp_path, bundle_path)
    folder.add("broken", model=break_model((bundle_path / bundle.MODEL).read_bytes(), "missing operator"))
    with pytest.raises(IntegrityError, match="does not load"):
        Bundle.open(folder.bundle("broken"))


def test_group_far_below_another_is_refused(manifest: Manifest) -> None:
    passed, reason = check(manifest, group("EWR", recall=0.8), group("JFK", recall=0.6), group("LGA", recall=0.75))
    assert not passed
    assert reason.startswith("recall of origin 'JFK' and 'EWR' differs by 0.200, 0.1")


def test_difference_of_small_groups_may_be_chance(manifest: Manifest) -> None:
    groups = (group("EWR", rows=40, recall=0.8), group("JFK", rows=40, recall=0.6))
    assert check(manifest, *groups)[0]
    assert (
        inclusion.compute_gaps(manifest.model_copy(update={"slices": groups}), ["origin"]).__next__().beyond_chance
        < 0.1
    )


@pytest.mark.parametrize(
    ("positives", "limit", "most"),
    [((500, 10), 0.0, 0.05), ((10,) * 20, 0.0, 0.05), ((10,) * 20, 0.3, 0.001)],
)
@pytest.mark.parametrize("recall", [0.6, 0.95])
def test_equal_groups_are_rarely_refused(
    manifest: Manifest, positives: tuple[int, ...], limit: float, most: float, recall: float
) -> None:
    """At most 5% of 500 simulated models without a difference, and none beyond the default limit."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(500):
        found = [
            group(str(at), rows=2 * count, recall=rng.binomial(count, recall) / count)
            for at, count in enumerate(positives)
        ]
        (gap,) = inclusion.compute_gaps(manifest.model_copy(update={"slices": tuple(found)}), ["origin"])
        refused += gap.beyond_chance > limit
    assert refused / 500 <= most


def test_group_with_few_positives_is_not_judged(manifest: Manifest) -> None:
    groups = (group("EWR", recall=0.8), group("JFK", rows=18, recall=0.0))
    assert check(manifest, *groups)[1].startswith("does not apply")
    assert not check(manifest, groups[0], group("JFK", rows=20, recall=0.0))[0]


def test_group_without_any_hit_has_an_error(manifest: Manifest) -> None:
    """The plain standard error of a share of 0 or 1 is 0."""
    groups = (group("EWR", rows=20, recall=1.0), group("JFK", rows=20, recall=0.0))
    (gap,) = inclusion.compute_gaps(manifest.model_copy(update={"slices": groups}), ["origin"])
    assert gap.difference == 1.0
    assert gap.beyond_chance < 0.5


def test_groups_share_the_level_of_error() -> None:
    assert inclusion.compute_width(2) == pytest.approx(2.0)
    assert inclusion.compute_width(20) > inclusion.compute_width(3) > 2.3


def test_groups_without_limit_or_partner_pass(manifest: Manifest) -> None:
    assert check(manifest, group("EWR", recall=0.8), group("JFK", recall=0.1), max_group_gap=None)[0]
    assert check(manifest, group("EWR", recall=0.8))[1].startswith("does not apply")
    assert inclusion.check_groups(gate.Candidate(manifest), LIMITS)[1].startswith("does not apply")


def test_error_of_numbers_is_relative_to_all_rows(manifest: Manifest) -> None:
    facts = {"task": "regression", "metrics": {"test": {"mae": 10.0}}}
    numbers = manifest.model_copy(update=facts)
    assert not check(numbers, group("EWR", mae=9.0), group("JFK", mae=12.0))[0]
    assert check(numbers, group("EWR", mae=9.9), group("JFK", mae=10.1))[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"latency_cpu_ms": 0.41}, "latency of a single row is 2.0 times"),
        ({"train_cpu_us": 150.0}, "processor time of training is 3.0 times"),
        ({"peak_mb": 1001.0}, "memory of a stage is 2.0 times"),
    ],
)
def test_growth_beyond_the_limit_is_a_regression(change: dict[str, float], text: str) -> None:
    (found,) = find_regressions(FIGURES, FIGURES.model_copy(update=change), 1.0)
    assert found.startswith(text)


def test_slower_machine_is_no_regression() -> None:
    slower = FIGURES.model_copy(update={"calibration_ms": 30.0, "latency_cpu_ms": 0.6, "train_cpu_us": 150.0})
    assert list(find_regressions(FIGURES, slower, 0.1)) == []


def test_figures_that_were_not_measured_are_not_compared() -> None:
    bare = FIGURES.model_copy(update={"train_cpu_us": None, "peak_mb": None})
    assert list(find_regressions(bare, FIGURES, 0.1)) == list(find_regressions(FIGURES, bare, 0.1)) == []


def test_calibration_loop_takes_milliseconds() -> None:
    assert 0.5 < run_calibration_loop() < 2000
