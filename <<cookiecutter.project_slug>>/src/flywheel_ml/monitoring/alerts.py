"""What somebody should be told about a window: records in a file, and a webhook where one is configured."""

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
    """Alerts that could not be delivered; they are in the alerts file all the same."""

    transient = True


class Alert(config_model.StrictModel):
    """One thing to be told: how bad, what, why, what to do first, and the page that says more."""

    at: datetime
    severity: Literal["critical", "warning", "info"]
    what: str
    evidence: str
    first_steps: tuple[str, ...]
    runbook: str
    model: str
    source: str

    def to_json(self) -> str:
        """The alert as one line of canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


class Finding(NamedTuple):
    """What a rule has to say of a window; `anchor` is the section of docs/runbook.md that tells what to do."""

    severity: Literal["critical", "warning", "info"]
    what: str
    evidence: str
    first_steps: tuple[str, ...]
    anchor: str


Rule = Callable[[Result], Iterable[Finding]]
SEVERITIES = ("critical", "warning", "info")


def build_alerts(result: Result, rules: Sequence[Rule]) -> tuple[Alert, ...]:
    """The alerts of a result, worst first; a window in which nothing is wrong has none."""
    found = [finding for rule in rules for finding in rule(result)]
    return tuple(
        Alert(
            at=result.at,
            severity=one.severity,
            what=one.what,
            evidence=one.evidence,
            first_steps=one.first_steps,
            runbook=f"docs/runbook.md#{one.anchor}",
            model=f"{result.model.name} {result.model.version}",
            source=result.source,
        )
        for one in sorted(found, key=lambda one: SEVERITIES.index(one.severity))
    )


def append(path: Path, alerts: Sequence[Alert]) -> None:
    """Add one JSON line per alert; a single write, so lines of several processes do not mix."""
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
    """POST the alerts to a webhook as `{"text": …, "alerts": […]}`, once; the caller retries.

    Args:
        url: setting ML_ALERT_WEBHOOK; chat systems show `text`.
        alerts: nothing is sent when there are none.
        timeout: seconds to wait.

    Raises:
        ConfigError: the URL is none that can be posted to.
        AlertError: it did not take the alerts.
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
        fault = f"answered {error.code}"
        error.close()
    except (OSError, ValueError) as error:
        fault = str(getattr(error, "reason", error))
    # The address may hold a secret token, so it is not repeated.
    raise AlertError(f"{len(alerts)} alerts were not delivered: the webhook {fault}; see ML_ALERT_WEBHOOK")


def check_standard(result: Result) -> Iterator[Finding]:
    """The library's own: quality, drift, contract, fallbacks, too few rows."""
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
            ("Find the sender of these rows.", "Mend the sender, or the contract if the world has changed."),
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


STANDARD: tuple[Rule, ...] = (check_standard,)
