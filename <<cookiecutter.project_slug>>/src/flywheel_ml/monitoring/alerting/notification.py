"""Notifications: what a sink receives when a condition begins and when it ends, and its texts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from flywheel_ml.monitoring.alerting.rules import Alert
from flywheel_ml.utils import config_model
from flywheel_ml.utils.files import canonical_json

Status = Literal["firing", "resolved"]


class Notification(config_model.StrictModel):
    """One notification.

    Attributes:
        status: `firing` when the condition begins, `resolved` when it has ended.
        incident: number of the incident in the outbox.
        started_at: time of the run that found the condition first.
        ended_at: time of the run that found it no longer; None while it lasts.
        alert: the alert, with the latest evidence.
    """

    status: Status
    incident: str
    started_at: datetime
    ended_at: datetime | None
    alert: Alert

    @property
    def id(self) -> str:
        """Identifier of the notification; a receiver may use it to drop a repeated one."""
        return f"{self.alert.fingerprint}-{self.started_at:%Y%m%dT%H%M%S.%f}-{self.status}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of alert and notification in one JSON object."""
        own = self.model_dump(mode="json", exclude={"alert", "incident"})
        return {**self.alert.model_dump(mode="json"), **own, "fingerprint": self.alert.fingerprint, "id": self.id}

    def to_json(self) -> str:
        """Serialize to one line of canonical JSON."""
        return canonical_json(self.to_dict())

    @property
    def title(self) -> str:
        """Severity and title in one line; `resolved` replaces the severity of a condition that ended."""
        column = f" ({self.alert.column})" if self.alert.column else ""
        mark = "resolved" if self.status == "resolved" else self.alert.severity
        return " ".join(f"[{mark}] {self.alert.what}{column}".split())

    @property
    def line(self) -> str:
        """Title and evidence in one line."""
        return " ".join(f"{self.title}: {self.alert.evidence}".split())

    @property
    def text(self) -> str:
        """All of it as plain text, for e-mail."""
        steps = [] if self.status == "resolved" else [f"  {number}. {step}" for number, step in self._steps()]
        ended = [f"Ended: {self.ended_at:%F %T} UTC"] if self.ended_at and self.status == "resolved" else []
        facts = [
            f"Model: {self.alert.model}",
            f"Window: {self.alert.source}",
            f"Since: {self.started_at:%F %T} UTC",
            *ended,
            f"Runbook: {self.alert.runbook}",
        ]
        return "\n".join([self.title, self.alert.evidence, *steps, "", *facts])

    def _steps(self) -> Sequence[tuple[int, str]]:
        return list(enumerate(self.alert.first_steps, 1))


def build_test_notification(now: datetime) -> Notification:
    """Build the notification of `make alerts-test`."""
    alert = Alert(
        at=now,
        severity="info",
        what="test of the alerts",
        evidence="sent by `make alerts-test`; nothing is wrong",
        first_steps=("Nothing to do.",),
        runbook="docs/alerts.md",
        model="none",
        source="test",
        rule="test",
        model_name="none",
    )
    # Alertmanager ends it by itself at that time.
    ended_at = now + timedelta(minutes=5)
    return Notification(status="firing", incident="0", started_at=now, ended_at=ended_at, alert=alert)
