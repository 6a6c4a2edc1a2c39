"""The gates that a model must pass before promotion. A new gate is one function and one row in `STANDARD_GATES`."""

import math
from collections.abc import Mapping

from flywheel_ml.core.bundle import BaselineComparison, Manifest, Slice
from flywheel_ml.core.catalog import LINEAR
from flywheel_ml.core.metrics import CALIBRATION_BINS, HEADLINE, LOSS
from flywheel_ml.core.params import GateParams
from flywheel_ml.model.evaluation import feature_rules, inclusion, stability
from flywheel_ml.model.evaluation.candidate import (
    TOLERATED_STANDARD_ERRORS,
    Candidate,
    Gate,
    GateResult,
    MissingMeasure,
    get_measure,
    get_slice_measure,
    require_finite,
)
from flywheel_ml.utils import formatting

__all__ = ["STANDARD_GATES", "Candidate", "Gate", "GateResult", "MissingMeasure", "check_gates", "get_measure"]


def check_minimum_score(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The headline measure on the test rows reaches an absolute minimum."""
    name, found = _get_headline(candidate, "test")
    if params.min_score is None:
        return True, f"{name} {found:.4f}, no minimum in params.yaml"
    return found >= params.min_score, f"{name} {found:.4f}, at least {params.min_score:g}"


def check_prior(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The loss on out-of-fold rows is significantly lower than that of always answering the average.

    Where params.yaml asks for it, the loss on the test rows is lower too, by a share of it.
    """
    compared = _get_comparison(candidate)
    passed = compared.prior.p_value < params.significance_level
    reason = (
        f"out-of-fold {_LOSSES[candidate.manifest.task]} {compared.loss:.4g} against {compared.prior.loss:.4g} of the "
        f"prior ({compared.rows:,} rows), {_format_p_value(compared.prior.p_value)}, "
        f"wanted below {params.significance_level:g}"
    )
    if params.min_skill_score is None:
        return passed, reason
    loss = LOSS[candidate.manifest.task]
    prior, found = get_measure(candidate, "prior", loss), get_measure(candidate, "test", loss)
    skill = 1 - found / prior if prior else 0.0
    return passed and skill >= params.min_skill_score, (
        f"{reason}; on the test rows {skill:+.1%} better, wanted {params.min_skill_score:+.1%}"
    )


def check_linear_baseline(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The loss on out-of-fold rows is not significantly higher than the linear baseline's.

    Where params.yaml asks for it, the headline measure on the test rows is higher too, by a margin.
    """
    compared = _get_comparison(candidate)
    passed = compared.linear.p_value >= params.significance_level
    reason = (
        f"out-of-fold {_LOSSES[candidate.manifest.task]} {compared.loss:.4g} against {compared.linear.loss:.4g} of the "
        f"linear baseline, {_format_p_value(compared.linear.p_value)} that it is no worse, "
        f"refused below {params.significance_level:g}"
    )
    if params.min_gain_over_linear is not None:
        (name, found), (_, linear) = _get_headline(candidate, "test"), _get_headline(candidate, "linear")
        passed = passed and found - linear >= params.min_gain_over_linear
        reason += f"; on the test rows {name} {found - linear:+.4f}, wanted {params.min_gain_over_linear:+g}"
    advice = "" if passed else f"; `train.estimator: {LINEAR[candidate.manifest.task]}` in params.yaml would be better"
    return passed, reason + advice


def check_champion(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The headline measure is not below the champion's on the same rows, beyond a margin."""
    if candidate.champion_problem:
        return False, f"the champion cannot be compared: {candidate.champion_problem}"
    if candidate.champion_score is None:
        return True, "there is no champion yet"
    name, found = _get_headline(candidate, "test")
    champion = require_finite(candidate.champion_score, f"the champion's {name}")
    return champion - found <= params.max_drop_from_champion, (
        f"{name} {found:.4f}, the champion's on the same rows {champion:.4f}, "
        f"allowed drop {params.max_drop_from_champion:g}"
    )


def check_parity(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The bundle gives the same predictions as scikit-learn on every test row."""
    found = require_finite(candidate.manifest.parity, "parity")
    return found <= params.parity_tolerance, (
        f"largest difference to scikit-learn {found:.2g}, allowed {params.parity_tolerance:g}"
    )


def check_slices(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Every slice that is large enough reaches a minimum, and is not far below the score of all test rows."""
    name, whole = _get_headline(candidate, "test")
    target = candidate.manifest.target
    found = [part for part in candidate.manifest.slices if part.column != target]
    if not found:
        return True, "does not apply: `evaluate.slices` in params.yaml lists no column"
    small = sum(not part.enough for part in found)
    judged = [
        (value, part) for part in found if part.enough and (value := _get_slice_score(candidate, part)) is not None
    ]
    aside = [
        *([f"{small} too small to judge"] if small else []),
        *([f"{alone} of one class alone"] if (alone := len(found) - small - len(judged)) else []),
    ]
    reason = f"; {', '.join(aside)}" if aside else ""
    if not judged:
        return True, f"does not apply: none of {len(found)} slices can be judged{reason}"
    limits = [params.min_slice_score, None if params.max_slice_drop is None else whole - params.max_slice_drop]
    limit = max((wanted for wanted in limits if wanted is not None), default=-math.inf)
    reach = [
        (value + TOLERATED_STANDARD_ERRORS * _compute_standard_error(candidate.manifest, value, part), value, part)
        for value, part in judged
    ]
    best, value, worst = min(reach, key=lambda one: one[0])
    return best >= limit, (
        f"the worst of {len(judged)} slices is {worst.column} '{worst.value}' ({worst.rows:,} rows): {name} "
        f"{value:.4f}, by chance up to {min(best, 1.0):.4f}, wanted {limit:.4f}{reason}"
    )


def check_class_recall(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """With more than two classes, every class with enough rows reaches a minimum recall."""
    if candidate.manifest.task != "multiclass":
        return True, f"does not apply to {_TASKS[candidate.manifest.task]}"
    found = [part for part in candidate.manifest.slices if part.column == candidate.manifest.target]
    judged = [part for part in found if part.enough]
    small = len(found) - len(judged)
    reason = f"; {small} classes too small to judge" if small else ""
    if not judged:
        return True, f"does not apply: no class can be judged{reason}"
    wanted = params.min_class_recall

    def reach(part: Slice) -> float:
        return get_slice_measure(part, "accuracy") + TOLERATED_STANDARD_ERRORS * math.sqrt(
            wanted * (1 - wanted) / part.rows
        )

    worst = min(judged, key=reach)
    return reach(worst) >= wanted, (
        f"the worst of {len(judged)} classes is '{worst.value}' ({worst.rows:,} rows): recall "
        f"{get_slice_measure(worst, 'accuracy'):.4f}, wanted {wanted:g}{reason}"
    )


def check_calibration(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Predicted probabilities are close to observed shares, with a tolerance for the noise of binning few rows.

    Each bin of a perfectly calibrated model has a half-normal error; its mean and spread are the tolerance.
    """
    task = candidate.manifest.task
    if task == "regression":
        return True, f"does not apply to {_TASKS[task]}"
    found = get_measure(candidate, "test", "calibration_error")
    if task == "binary":
        variance = get_measure(candidate, "test", "brier")
    else:
        accuracy = get_measure(candidate, "test", "accuracy")
        variance = accuracy * (1 - accuracy)
    bins = math.sqrt(2 * CALIBRATION_BINS / math.pi) + TOLERATED_STANDARD_ERRORS * math.sqrt(1 - 2 / math.pi)
    chance = bins * math.sqrt(variance / _get_row_count(candidate, "test"))
    return found <= params.max_calibration_error + chance, (
        f"calibration error {found:.4f}, allowed {params.max_calibration_error:g} and {chance:.4f} for chance"
    )


def check_coverage(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Intervals contain the true value at least as often as stated; more often passes, as ties of errors cause it."""
    if candidate.manifest.task != "regression":
        return True, f"does not apply to {_TASKS[candidate.manifest.task]}"
    if candidate.interval_level is None:
        raise MissingMeasure("the level of the intervals is not known")
    level, found = candidate.interval_level, get_measure(candidate, "test", "coverage")
    rows = sum(1 / _get_row_count(candidate, part) for part in ("validation", "test"))
    chance = TOLERATED_STANDARD_ERRORS * math.sqrt(level * (1 - level) * rows)
    return found >= level - params.coverage_tolerance - chance, (
        f"intervals hold {found:.1%} of the truth, stated {level:.0%}, allowed {params.coverage_tolerance:g} less "
        f"and {chance:.4f} for chance"
    )


def check_latency(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """A single row is predicted within the latency limit."""
    if candidate.latency_ms is None:
        raise MissingMeasure("the latency of single rows was not measured")
    found = require_finite(candidate.latency_ms, "the latency of single rows")
    return found <= params.max_latency_ms, f"median of single rows {found:.2g} ms, allowed {params.max_latency_ms:g} ms"


def check_size(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The bundle is not larger than the size limit."""
    if candidate.size_mb is None:
        raise MissingMeasure("the bundle's size was not measured")
    found = require_finite(candidate.size_mb, "the bundle's size")
    return found <= params.max_size_mb, f"{found:.2f} MB, allowed {params.max_size_mb:g} MB"


NO_SIGNAL = "better than the class prior"
"""The gate that refuses a model if the table has no signal."""
_LOSSES = {"binary": "log loss", "multiclass": "log loss", "regression": "mean squared error"}
_TASKS = {"binary": "two classes", "multiclass": "classes", "regression": "numbers"}
STANDARD_GATES: dict[str, Gate] = {
    "minimum score": check_minimum_score,
    "better than the class prior": check_prior,
    "not worse than the linear baseline": check_linear_baseline,
    "keeps up with the champion": check_champion,
    "same answers as scikit-learn": check_parity,
    "no slice is left behind": check_slices,
    "recall of every class": check_class_recall,
    "equal quality across groups": inclusion.check_groups,
    "calibrated probabilities": check_calibration,
    "honest intervals": check_coverage,
    "only permitted columns": feature_rules.check_permitted,
    "cost of every feature": feature_rules.check_cost,
    "numerically stable": stability.check_stability,
    "single-row latency": check_latency,
    "bundle size": check_size,
}


def check_gates(
    candidate: Candidate, params: GateParams, gates: Mapping[str, Gate] = STANDARD_GATES
) -> list[GateResult]:
    """Run every gate in order. A missing or non-finite measure never passes."""
    return [_run_gate(name, gate, candidate, params) for name, gate in gates.items()]


def _get_comparison(candidate: Candidate) -> BaselineComparison:
    found = candidate.manifest.comparison
    if found is None:
        raise MissingMeasure("the bundle has no comparison on out-of-fold rows; train again")
    require_finite(found.prior.p_value, "the p-value against the prior")
    require_finite(found.linear.p_value, "the p-value against the linear baseline")
    return found


def _format_p_value(value: float) -> str:
    return f"p = {value:.2g}" if value >= 0.001 else "p < 0.001"


def _get_headline(candidate: Candidate, part: str) -> tuple[str, float]:
    """Return the display name and value of the headline measure of the task."""
    name = HEADLINE[candidate.manifest.task]
    return formatting.METRIC_NAMES[name], get_measure(candidate, part, name)


def _get_slice_score(candidate: Candidate, part: Slice) -> float | None:
    """Return the headline measure of a slice; None if the slice has only one class.

    R² is relative to the variance of the slice or of all test rows, whichever gives the higher score: a slice with
    almost constant values has little to explain, and a slice with large values has large errors.
    """
    name, own = HEADLINE[candidate.manifest.task], part.metrics.get(HEADLINE[candidate.manifest.task])
    if own is not None:
        own = require_finite(own, f"{name} of {part.column} '{part.value}'")
    if candidate.manifest.task != "regression":
        return own
    error, unexplained = get_measure(candidate, "test", "rmse"), 1 - get_measure(candidate, "test", "r2")
    beside = (
        1 - unexplained * (get_slice_measure(part, "rmse") / error) ** 2
        if error
        else 1.0 - (get_slice_measure(part, "rmse") > 0)
    )
    return beside if own is None else max(own, beside)


def _compute_standard_error(manifest: Manifest, value: float, part: Slice) -> float:
    """Compute an upper bound of the standard error of a slice's headline measure.

    Of an area A it is at most √(A (1 − A) / rows of the rarer class) (Birnbaum & Klose 1957, "Bounds for the Variance
    of the Mann-Whitney Statistic"), more classes being taken as equally common; of R², for normal errors, about
    2 (1 − R²) / √rows.
    """
    if manifest.task == "regression":
        return 2 * (1 - value) / math.sqrt(part.rows)
    if manifest.task == "binary":
        positive = get_slice_measure(part, "prevalence")
        rarer = part.rows * min(positive, 1 - positive)
    else:
        rarer = part.rows / len(manifest.classes)
    return math.sqrt(value * (1 - value) / max(rarer, 1.0))


def _get_row_count(candidate: Candidate, part: str) -> int:
    found = candidate.manifest.rows.get(part, 0)
    if found < 1:
        raise MissingMeasure(f"the evaluation has no {part} rows")
    return found


def _run_gate(name: str, gate: Gate, candidate: Candidate, params: GateParams) -> GateResult:
    try:
        passed, reason = gate(candidate, params)
    except MissingMeasure as unmeasured:
        passed, reason = False, str(unmeasured)
    return GateResult(name, bool(passed), reason)
