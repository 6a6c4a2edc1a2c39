"""Each gate can say no alone, and nothing that was not measured passes."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from << cookiecutter.package_name >> import bundle
from << cookiecutter.package_name >>.model import gate
from << cookiecutter.package_name >>.model.gate import Candidate
from << cookiecutter.package_name >>.params import GateParams

PARAMS = GateParams(
    floor=0.6,
    skill_over_trivial=0.01,
    gain_over_linear=0.0,
    loss_to_champion=0.01,
    parity_tolerance=1e-5,
)
GOOD = {
    "test": {"roc_auc": 0.75, "log_loss": 0.5},
    "linear": {"roc_auc": 0.7, "log_loss": 0.55},
    "trivial": {"roc_auc": 0.5, "log_loss": 0.6},
}


@pytest.fixture
def manifest(bundle_path: Path) -> bundle.Manifest:
    return bundle.verify(bundle_path).model_copy(update={"metrics": GOOD, "parity": 1e-7})


def with_metric(manifest: bundle.Manifest, part: str, name: str, value: float | None) -> bundle.Manifest:
    table = {key: found for key, found in {**GOOD[part], name: value}.items() if found is not None}
    return manifest.model_copy(update={"metrics": {**GOOD, part: table}})


def refusals(candidate: Candidate) -> Mapping[str, str]:
    return {check.gate: check.reason for check in gate.judge(candidate, PARAMS) if not check.passed}


def test_a_good_model_passes_every_gate(manifest: bundle.Manifest) -> None:
    assert not refusals(Candidate(manifest))
    assert not refusals(Candidate(manifest, champion=0.759))
    assert len(gate.judge(Candidate(manifest), PARAMS)) == len(gate.GATES)


def test_a_model_below_the_floor_is_refused(manifest: bundle.Manifest) -> None:
    poor = manifest.model_copy(
        update={"metrics": {**GOOD, "test": {"roc_auc": 0.59, "log_loss": 0.5}, "linear": {"roc_auc": 0.58}}}
    )
    assert refusals(Candidate(poor)) == {"metric floor": "ROC AUC 0.5900, floor 0.6"}


def test_a_model_no_better_than_the_prior_is_refused(manifest: bundle.Manifest) -> None:
    poor = with_metric(manifest, "test", "log_loss", 0.595)
    assert list(refusals(Candidate(poor))) == ["beats the trivial baseline"]


def test_a_model_worse_than_the_linear_one_is_refused(manifest: bundle.Manifest) -> None:
    poor = with_metric(manifest, "linear", "roc_auc", 0.7501)
    assert list(refusals(Candidate(poor))) == ["beats the linear baseline"]


def test_a_model_worse_than_the_champion_beyond_the_margin_is_refused(manifest: bundle.Manifest) -> None:
    assert list(refusals(Candidate(manifest, champion=0.7611))) == ["keeps up with the champion"]


def test_a_model_is_refused_where_the_champion_cannot_be_compared(manifest: bundle.Manifest) -> None:
    found = refusals(Candidate(manifest, champion_problem="its artifacts are gone"))
    assert found == {"keeps up with the champion": "the champion cannot be compared: its artifacts are gone"}


def test_a_bundle_that_answers_otherwise_than_scikit_learn_is_refused(manifest: bundle.Manifest) -> None:
    wrong = manifest.model_copy(update={"parity": 0.45})
    assert list(refusals(Candidate(wrong))) == ["same answers as scikit-learn"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize(
    ("part", "name", "gates"),
    [
        ("test", "roc_auc", {"metric floor", "beats the linear baseline", "keeps up with the champion"}),
        ("test", "log_loss", {"beats the trivial baseline"}),
        ("linear", "roc_auc", {"beats the linear baseline"}),
        ("trivial", "log_loss", {"beats the trivial baseline"}),
    ],
)
def test_what_was_not_measured_never_passes(
    manifest: bundle.Manifest, part: str, name: str, gates: set[str], value: float | None
) -> None:
    candidate = Candidate(with_metric(manifest, part, name, value), champion=0.7)
    found = refusals(candidate)
    assert set(found) == gates
    assert all(name in reason for reason in found.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_champion_or_a_parity_that_is_no_number_never_lets_a_model_pass(
    manifest: bundle.Manifest, value: float
) -> None:
    wrong = manifest.model_copy(update={"parity": value})
    assert set(refusals(Candidate(wrong, champion=value))) == {
        "keeps up with the champion",
        "same answers as scikit-learn",
    }


def test_a_gate_is_added_by_one_function_and_one_row(
    manifest: bundle.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_enough(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
        found = len(candidate.manifest.numeric)
        return found < 1, f"{found} numeric inputs, allowed 0"

    monkeypatch.setitem(gate.GATES, "small enough", small_enough)
    assert refusals(Candidate(manifest)) == {"small enough": f"{len(manifest.numeric)} numeric inputs, allowed 0"}


def test_the_thresholds_come_from_the_parameters(manifest: bundle.Manifest) -> None:
    strict = PARAMS.model_copy(update={"floor": 0.9})
    found = [check.gate for check in gate.judge(Candidate(manifest), strict) if not check.passed]
    assert found == ["metric floor"]
