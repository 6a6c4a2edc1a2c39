"""Rules: each looks at the result of a window and yields what is wrong with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from flywheel_ml.monitoring.result import Result
from flywheel_ml.utils import config_model, formatting
from flywheel_ml.utils.files import canonical_json, sha256_text

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
MAX_TEXT = 2000
"""Maximum number of characters of a text in an alert."""
INSUFFICIENT, QUALITY = "insufficient-data", "degraded-quality"
EXPERIMENT_ERRORS, MODEL_AGE = "experiment-errors", "model-age"
"""Rules that do not depend on the rows of the window."""


class Alert(config_model.StrictModel):
    """One alert: severity, what happened, the evidence, the first steps, and the page with more.

    `rule`, `column`, `digest` (of the model) and `source` identify the condition; `fingerprint` is their hash.
    """

    at: datetime
    severity: Severity
    what: str
    evidence: str
    first_steps: tuple[str, ...]
    runbook: str
    model: str
    source: str
    rule: str = ""
    column: str = ""
    model_name: str = ""
    digest: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of what identifies the condition, 16 hex digits; equal in every run in which the condition holds."""
        parts = (self.model_name, self.digest, self.source, self.rule or self.what, self.column)
        return sha256_text(canonical_json(parts))[:16]

    def to_json(self) -> str:
        """Serialize the alert to one line of canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


class Finding(NamedTuple):
    """What a rule found in a window.

    Attributes:
        severity: `critical`, `warning` or `info`.
        what: title; it must not change while the condition lasts, unless `rule` is given.
        evidence: figures that show it; may change from run to run.
        first_steps: what to do first.
        anchor: section of docs/runbook.md that says what to do.
        rule: identifier of the condition; by default `what`.
        column: column that the condition is about, if any.
    """

    severity: Severity
    what: str
    evidence: str
    first_steps: tuple[str, ...]
    anchor: str
    rule: str = ""
    column: str = ""


Rule = Callable[[Result], Iterable[Finding]]


def build_alerts(result: Result, rules: Sequence[Rule]) -> tuple[Alert, ...]:
    """Build the alerts of a result, most severe first; none if no rule finds anything."""
    findings = [finding for rule in rules for finding in rule(result)]
    return tuple(
        Alert(
            at=result.at,
            severity=finding.severity,
            what=_shorten(finding.what),
            evidence=_shorten(finding.evidence),
            first_steps=finding.first_steps,
            runbook=f"docs/runbook.md#{finding.anchor}",
            model=f"{result.model.name} {result.model.version}",
            source=result.source,
            rule=finding.rule or finding.what,
            column=finding.column,
            model_name=result.model.name,
            digest=result.model.digest,
        )
        for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    )


def can_end(result: Result, rule: str) -> bool:
    """Whether the absence of a finding in this result means that the rule's condition ended.

    A window with too few rows ends nothing but the alert about too few rows, and those that do not depend on the
    window. A window with too few labels says nothing about quality.
    """
    if rule in (INSUFFICIENT, EXPERIMENT_ERRORS, MODEL_AGE):
        return True
    if rule == QUALITY and result.quality.verdict == "insufficient data":
        return False
    return result.verdict != "insufficient data"


def check_standard(result: Result) -> Iterator[Finding]:
    """Apply the library's rules: quality, drift, contract, fallbacks, too few rows."""
    if result.quality.verdict == "degraded":
        yield Finding(
            "critical",
            "the model has become worse",
            result.quality.reason,
            ("Check that the labels are right.", "Roll back if an older version does better on them.", "Retrain."),
            "degraded-quality",
            QUALITY,
        )
    if result.drift.verdict == "drift":
        yield Finding(
            "warning",
            "the data have drifted",
            result.drift.reason,
            ("Look at the plots of the changed columns.", "Ask their source what changed.", "Retrain if it lasts."),
            "drift",
            "drift",
        )
    if result.violations:
        rows = ", ".join(f"{v.column}: {formatting.rows(v.rows)} {v.rule}" for v in result.violations[:5])
        yield Finding(
            "warning",
            "rows break the contract",
            rows,
            ("Find the sender of these rows.", "Fix the sender, or update the contract if the change is legitimate."),
            "contract-violations",
            "contract-violations",
        )
    if result.volume.degraded:
        share = result.volume.degraded / result.volume.rows
        yield Finding(
            "warning",
            "a fallback answered instead of the model",
            f"{result.volume.degraded:,} rows ({share:.1%})",
            ("See the server's log for why the model failed.",),
            "degraded-answers",
            "degraded-answers",
        )
    if result.verdict == "insufficient data":
        yield Finding(
            "info",
            "too little data to judge",
            result.drift.reason,
            ("Widen the window.", "Check that requests reach the server."),
            "insufficient-data",
            INSUFFICIENT,
        )


STANDARD_RULES: tuple[Rule, ...] = (check_standard,)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
