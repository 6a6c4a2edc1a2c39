"""Alerts about a window: appended to a file, and sent to a webhook if one is configured."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from flywheel_ml.monitoring.result import Result
from flywheel_ml.utils import config_model, formatting
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.files import canonical_json

TIMEOUT_SECONDS = 10.0


class AlertError(ProjectError):
    """Alerts could not be delivered; the alerts file has them anyway."""

    transient = True


class Alert(config_model.StrictModel):
    """One alert: severity, what happened, the evidence, the first steps, and the page with more."""

    at: datetime
    severity: Literal["critical", "warning", "info"]
    what: str
    evidence: str
    first_steps: tuple[str, ...]
    runbook: str
    model: str
    source: str

    def to_json(self) -> str:
        """Serialize the alert to one line of canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


class Finding(NamedTuple):
    """What a rule found in a window; `anchor` is the section of docs/runbook.md that says what to do."""

    severity: Literal["critical", "warning", "info"]
    what: str
    evidence: str
    first_steps: tuple[str, ...]
    anchor: str


Rule = Callable[[Result], Iterable[Finding]]
SEVERITIES = ("critical", "warning", "info")


def build_alerts(result: Result, rules: Sequence[Rule]) -> tuple[Alert, ...]:
    """Build the alerts of a result, most severe first; none if no rule finds anything."""
    findings = [finding for rule in rules for finding in rule(result)]
    return tuple(
        Alert(
            at=result.at,
            severity=finding.severity,
            what=finding.what,
            evidence=finding.evidence,
            first_steps=finding.first_steps,
            runbook=f"docs/runbook.md#{finding.anchor}",
            model=f"{result.model.name} {result.model.version}",
            source=result.source,
        )
        for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    )


def append(path: Path, alerts: Sequence[Alert]) -> None:
    """Append one JSON line per alert in a single write, so that lines of several processes do not mix."""
    if not alerts:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(alert.to_json() + "\n" for alert in alerts).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, lines)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def deliver(url: str, alerts: Sequence[Alert], timeout: float = TIMEOUT_SECONDS) -> None:
    """POST the alerts once to a webhook as `{"text": …, "alerts": […]}`; the caller retries.

    Args:
        url: setting ML_ALERT_WEBHOOK; chat systems show `text`.
        alerts: the alerts; if there are none, nothing is sent.
        timeout: timeout in seconds.

    Raises:
        ConfigError: the URL is not an HTTP URL.
        AlertError: the webhook did not accept the alerts.
    """
    if not alerts:
        return
    if not url.startswith(("http://", "https://")):
        raise ConfigError("ML_ALERT_WEBHOOK: the address must start with http:// or https://")
    text = "\n".join(f"[{alert.severity}] {alert.what}: {alert.evidence}" for alert in alerts)
    body = json.dumps({"text": text, "alerts": [alert.model_dump(mode="json") for alert in alerts]}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return
    except urllib.error.HTTPError as error:
        reason = f"answered {error.code}"
        error.close()
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    # The address may hold a secret token, so the message omits it.
    raise AlertError(f"{len(alerts)} alerts were not delivered: the webhook {reason}; see ML_ALERT_WEBHOOK")


def check_standard(result: Result) -> Iterator[Finding]:
    """Apply the library's rules: quality, drift, contract, fallbacks, too few rows."""
    if result.quality.verdict == "degraded":
        yield Finding(
            "critical",
            "the model has become worse",
            result.quality.reason,
            ("Check that the labels are right.", "Roll back if an older version does better on them.", "Retrain."),
            "degraded-quality",
        )
    if result.drift.verdict == "drift":
        yield Finding(
            "warning",
            "the data have drifted",
            result.drift.reason,
            ("Look at the plots of the changed columns.", "Ask their source what changed.", "Retrain if it lasts."),
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
        )
    if result.volume.degraded:
        share = result.volume.degraded / result.volume.rows
        yield Finding(
            "warning",
            "a fallback answered instead of the model",
            f"{result.volume.degraded:,} rows ({share:.1%})",
            ("See the server's log for why the model failed.",),
            "degraded-answers",
        )
    if result.verdict == "insufficient data":
        yield Finding(
            "info",
            "too little data to judge",
            result.drift.reason,
            ("Widen the window.", "Check that requests reach the server."),
            "insufficient-data",
        )


STANDARD_RULES: tuple[Rule, ...] = (check_standard,)
