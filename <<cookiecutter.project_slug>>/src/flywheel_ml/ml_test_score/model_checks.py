"""The seven tests of model development."""

from collections.abc import Iterator, Mapping
from typing import Any

from flywheel_ml.core import paths
from flywheel_ml.ml_test_score.evidence import Check, Evidence, Finding, attack, stage_report
from flywheel_ml.ml_test_score.facts import Facts
from flywheel_ml.ml_test_score.traffic import MIN_CORRELATION
from flywheel_ml.model.evaluation import gate, inclusion
from flywheel_ml.model.evaluation.ablation import Ablation
from flywheel_ml.model.evaluation.candidate import Candidate, Gate, MissingMeasure

MIN_TRIALS = 10
MIN_PROBED_SHARE, MIN_PROBED_ROWS = 0.1, 10_000
"""Refits with other hyperparameters count if they saw this share of the training rows, or this many."""
MIN_SPANS = 4
_TIME_HINT = "`make run`; if rows have a time, give its column the role `time` in contract.yaml"
MAX_SLICE_DROP, MAX_GROUP_GAP = 0.25, 0.3
"""Limits of these tests if the gates of params.yaml have none, as for a table that was just adopted."""


def _verify_submitted(facts: Facts) -> Finding:
    if facts.history.last is None:
        return Finding(False, "the specification of the model was never committed", "git")
    if facts.history.changed:
        return Finding(False, f"{facts.history.changed[0]} differs from the commit", "git")
    last = facts.history.last
    return Finding(True, f"the specification is committed ({last.commit[:8]})", "git", last.at)


def _verify_reviewed(facts: Facts) -> Finding:
    last = facts.history.last
    if last is None or not last.reviewers:
        return Finding(False, "the last commit of the specification names no reviewer", "git", last and last.at)
    return Finding(True, f"reviewed by {last.reviewers[0]}", "git", last.at)


def _verify_agreement(facts: Facts) -> Finding | None:
    found = facts.traffic.agreement
    if found is None:
        return None
    text = f"rank correlation {found.correlation:.2f} of {found.metric} over {len(found.offline)} versions"
    return Finding(found.correlation >= MIN_CORRELATION, f"{text}, wanted {MIN_CORRELATION:g}", "prediction log")


def _check_attacked_agreement(_: Facts, figures: Mapping[str, str | float]) -> str:
    found = float(figures.get("correlation", -1.0))
    return "" if found >= MIN_CORRELATION else f"rank correlation {found:.2f}, wanted {MIN_CORRELATION:g}"


def _check_tuning(facts: Facts, report: Any) -> str:
    trials = facts.pipeline.reports.get("reports/tuning.json")
    if trials and len(trials.content["trials"]) >= MIN_TRIALS:
        return ""
    found = Ablation.model_validate(report, strict=False)
    if not found.probes:
        return "no other configuration was tried: the estimator has no search space"
    if better := [one.name for one in found.probes if one.is_better]:
        return f"another configuration is clearly better: {better[0]}"
    rows = facts.model.manifest.rows["train"] if facts.model.manifest else 0
    if found.rows[1] < min(MIN_PROBED_SHARE * rows, MIN_PROBED_ROWS):
        return f"other configurations saw only {found.rows[1]:,} of {rows:,} training rows"
    return ""


def _check_aging(_: Facts, report: Any) -> str:
    spans = report["aging"]
    return "" if len(spans) >= MIN_SPANS else "rows have no times, so the age of a model is unknown"


def _pass_gate(name: str, check: Gate) -> Evidence:
    """Evidence that the present model passes a gate under the present parameters."""

    def verify(facts: Facts) -> Finding:
        where = (f"{paths.BUNDLE}/manifest.json", facts.model.at)
        if facts.model.manifest is None:
            return Finding(False, facts.model.problem, where[0])
        limits = facts.params.gates
        if limits.min_slice_score is None and limits.max_slice_drop is None:
            limits = limits.model_copy(update={"max_slice_drop": MAX_SLICE_DROP})
        try:
            passed, reason = check(Candidate(facts.model.manifest), limits)
        except MissingMeasure as error:
            passed, reason = False, str(error)
        return Finding(passed and not reason.startswith("does not apply"), reason, *where)

    return Evidence(f"gate: {name}", verify, "`make run`")


def _check_slices(facts: Facts, report: Any) -> str:
    measured = {one["column"] for one in report["slices"]}
    missing = [name for name in facts.params.evaluate.slices if name not in measured]
    return f"slices of '{missing[0]}' were not measured" if missing else ""


def _verify_inclusion(facts: Facts) -> Finding:
    where = ("reports/evaluation.json", facts.model.at)
    if facts.model.manifest is None:
        return Finding(False, facts.model.problem, where[0])
    groups, limits = facts.params.evaluate.groups, facts.params.gates
    if not groups:
        return Finding(False, "no groups are declared", "params.yaml")
    if limits.max_group_gap is None:
        limits = limits.model_copy(update={"max_group_gap": MAX_GROUP_GAP})
    gaps = {gap.column: gap for gap in inclusion.compute_gaps(facts.model.manifest, groups)}
    if missing := [name for name in groups if name not in gaps]:
        return Finding(False, f"'{missing[0]}' has no two groups with enough rows", *where)
    passed, reason = inclusion.check_groups(Candidate(facts.model.manifest, groups=groups), limits)
    return Finding(passed, reason, *where)


def _list_checks() -> Iterator[Check]:
    yield Check(
        "model.reviewed",
        "Every specification of a model is reviewed and submitted",
        (
            Evidence("submitted", _verify_submitted, "`git commit`"),
            Evidence(
                "reviewed", _verify_reviewed, "let another person review it: `Reviewed-by:` in the commit's message"
            ),
        ),
        Evidence("submitted", _verify_submitted, "`git commit`"),
        "a review needs a second person; a commit alone counts half",
    )
    yield Check(
        "model.online",
        "Offline and online metrics correlate",
        (
            attack("offline and online metrics agree", _check_attacked_agreement),
            Evidence("versions in the log", _verify_agreement, "compare what the log and the test rows measure"),
        ),
        reason="without labelled traffic of three versions, the acceptance test's traffic counts",
    )
    yield Check(
        "model.tuned",
        "All hyperparameters are tuned",
        (
            stage_report(
                "evaluate", paths.ABLATION.as_posix(), _check_tuning, "`tune.trials: 20` in params.yaml, `make run`"
            ),
        ),
    )
    yield Check(
        "model.staleness",
        "The effect of a model's age is known",
        (stage_report("evaluate", "reports/evaluation.json", _check_aging, _TIME_HINT),),
    )
    yield Check(
        "model.simpler",
        "A simpler model is not better",
        (_pass_gate("not worse than the linear baseline", gate.check_linear_baseline), attack("nothing to learn")),
    )
    yield Check(
        "model.slices",
        "Quality is sufficient on all important slices",
        (
            stage_report("evaluate", "reports/evaluation.json", _check_slices),
            _pass_gate("no slice is left behind", gate.check_slices),
            attack("weak slice"),
        ),
    )
    yield Check(
        "model.inclusion",
        "The model is tested for inclusion",
        (
            Evidence("gap between groups", _verify_inclusion, "`evaluate.groups` in params.yaml, then `make run`"),
            attack("unequal groups"),
        ),
    )


CHECKS = tuple(_list_checks())
