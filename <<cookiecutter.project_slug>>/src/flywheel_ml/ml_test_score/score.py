"""Evaluates the checks on collected facts: points of each check, sections, and the final score."""

from collections.abc import Sequence
from datetime import datetime

from flywheel_ml.ml_test_score import data_checks, infrastructure_checks, model_checks, monitoring_checks
from flywheel_ml.ml_test_score.evidence import SECTIONS, Check
from flywheel_ml.ml_test_score.facts import Facts
from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.errors import ProjectError

CHECKS: tuple[Check, ...] = (
    *data_checks.CHECKS,
    *model_checks.CHECKS,
    *infrastructure_checks.CHECKS,
    *monitoring_checks.CHECKS,
)
"""The 28 tests, in the order of the paper's sections."""


class VerifiedEvidence(StrictModel):
    """A piece of evidence as verified; `at` is None if it was made during the evaluation."""

    name: str
    holds: bool
    text: str
    path: str
    at: datetime | None


class CheckResult(StrictModel):
    """Points of a check: 1 if all its evidence holds, 0.5 if a manual test is documented, else 0."""

    id: str
    title: str
    points: float
    evidence: tuple[VerifiedEvidence, ...]
    hint: str
    reason: str


class Scorecard(StrictModel):
    """The result: the final score is the lowest section's sum."""

    at: datetime
    name: str
    model: str
    sections: dict[str, float]
    score: float
    checks: tuple[CheckResult, ...]


def evaluate(facts: Facts, checks: Sequence[Check] = CHECKS) -> Scorecard:
    """Evaluate all checks."""
    results = tuple(_evaluate_check(check, facts) for check in checks)
    sections: dict[str, float] = {}
    for section in SECTIONS:
        sections[section] = sum(one.points for one in results if one.id.startswith(f"{section}."))
    champion = facts.model.champion
    served = f"; version {champion.version} is champion" if champion else ""
    estimator = facts.model.manifest.estimator if facts.model.manifest else "no valid bundle"
    return Scorecard(
        at=facts.now,
        name=facts.contract.name,
        model=f"{estimator} {facts.model.digest[:8]}{served}",
        sections=sections,
        score=min(sections.values()),
        checks=results,
    )


def _evaluate_check(check: Check, facts: Facts) -> CheckResult:
    verified, hint = [], ""
    for piece in check.evidence:
        try:
            found = piece.verify(facts)
        except (ProjectError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            text = f"it cannot be verified: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            verified.append(VerifiedEvidence(name=piece.name, holds=False, text=text, path="", at=None))
            hint = hint or f"{text}; {piece.hint}"
            continue
        if found is not None:
            verified.append(VerifiedEvidence(name=piece.name, **found._asdict()))
            if not found.holds:
                hint = hint or f"{found.text}: {piece.hint}"
    points = 1.0 if verified and all(one.holds for one in verified) else 0.0
    if not points and (half := _verify_documented(check, facts)) is not None:
        points = 0.5 if half.holds else 0.0
        verified.append(half)
    return CheckResult(
        id=check.id, title=check.title, points=points, evidence=tuple(verified), hint=hint, reason=check.reason
    )


def _verify_documented(check: Check, facts: Facts) -> VerifiedEvidence | None:
    """Verify what counts half: evidence of its own, or an entry of manual_tests.yaml."""
    if (manual := facts.manual.get(check.id)) is not None:
        problem = manual.find_problem(facts.now.date())
        text = problem or f"{manual.by}: {manual.result}"
        at = datetime(manual.at.year, manual.at.month, manual.at.day, tzinfo=facts.now.tzinfo)
        return VerifiedEvidence(name="manual test", holds=not problem, text=text, path="manual_tests.yaml", at=at)
    if check.documented is None:
        return None
    found = check.documented.verify(facts)
    return None if found is None else VerifiedEvidence(name=check.documented.name, **found._asdict())
