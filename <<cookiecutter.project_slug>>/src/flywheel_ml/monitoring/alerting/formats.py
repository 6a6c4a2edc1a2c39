"""The JSON that each kind of webhook expects."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flywheel_ml.monitoring.alerting.notification import Notification

MAX_SLACK_TEXT = 2900
"""Slack rejects a section with more than 3,000 characters."""
MAX_CARD_TEXT = 400
"""Teams rejects a message above 28 KB; 20 alerts of this size fit."""
ALERTMANAGER_EXPIRY = timedelta(days=8)
"""Alertmanager ends an alert that is not sent again until then: a weekly run renews it in time."""
MARKS = {"critical": "🔴", "warning": "🟠", "info": "🔵"}
COLOURS = {"critical": "Attention", "warning": "Warning", "info": "Accent"}


def format_json(notifications: Sequence[Notification]) -> dict[str, Any]:
    """Format as `{"text": …, "alerts": […]}`; chat systems show `text`."""
    return {
        "text": "\n".join(one.line for one in notifications),
        "alerts": [one.to_dict() for one in notifications],
    }


def format_slack(notifications: Sequence[Notification]) -> dict[str, Any]:
    """Format for an incoming webhook of Slack: a section per alert, in Block Kit."""
    blocks: list[dict[str, Any]] = []
    for one in notifications:
        alert = one.alert
        steps = "" if one.status == "resolved" else "".join(f"\n• {step}" for step in alert.first_steps)
        mark = "✅" if one.status == "resolved" else MARKS[alert.severity]
        text = f"{mark} *{one.title}*\n{alert.evidence}{steps}"
        facts = f"{alert.model} · {alert.source} · {alert.runbook}"
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": _escape_slack(text)}})
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _escape_slack(facts)}]})
    return {"text": _escape_slack("\n".join(one.line for one in notifications)), "blocks": blocks}


def format_teams(notifications: Sequence[Notification]) -> dict[str, Any]:
    """Format for a workflow of Microsoft Teams: one adaptive card."""
    body: list[dict[str, Any]] = []
    for one in notifications:
        alert = one.alert
        colour = "Good" if one.status == "resolved" else COLOURS[alert.severity]
        title = {"text": one.title[:MAX_CARD_TEXT], "weight": "Bolder", "size": "Medium", "color": colour}
        steps = () if one.status == "resolved" else alert.first_steps
        facts = f"{alert.model} · {alert.source} · {alert.runbook}"
        texts = [alert.evidence[:MAX_CARD_TEXT], *steps, facts]
        body.append({"type": "TextBlock", "wrap": True, "separator": True, **title})
        body += [
            {"type": "TextBlock", "wrap": True, "spacing": "Small", "text": _escape_markdown(text)} for text in texts
        ]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def format_alertmanager(notifications: Sequence[Notification], now: datetime) -> list[dict[str, Any]]:
    """Format for `POST /api/v2/alerts` of Alertmanager; the labels of an alert never change while it lasts."""
    found = []
    for one in notifications:
        alert = one.alert
        name = "".join(word.capitalize() for word in (alert.rule or alert.what).replace("-", " ").split())
        labels = {
            "alertname": name,
            "severity": alert.severity,
            "model": alert.model_name,
            "digest": alert.digest[:12],
            "column": alert.column,
            "source": alert.source,
            "fingerprint": alert.fingerprint,
        }
        annotations = {
            "summary": alert.what,
            "description": alert.evidence,
            "first_steps": " ".join(alert.first_steps),
            "runbook": alert.runbook,
        }
        ends = one.ended_at or now + ALERTMANAGER_EXPIRY
        found.append(
            {
                "labels": {key: value for key, value in labels.items() if value},
                "annotations": annotations,
                "startsAt": one.started_at.astimezone(UTC).isoformat(),
                "endsAt": ends.astimezone(UTC).isoformat(),
            }
        )
    return found


def _escape_slack(text: str) -> str:
    """Escape the three control characters of Slack's `mrkdwn`, in as much of the text as Slack accepts."""
    escaped = html.escape(text, quote=False)
    while len(escaped) > MAX_SLACK_TEXT:
        text = text[: len(text) * MAX_SLACK_TEXT // len(escaped) - 1]
        escaped = f"{html.escape(text, quote=False)}…"
    return escaped


def _escape_markdown(text: str) -> str:
    """Escape what Teams would read as a link or as emphasis."""
    for letter in "\\*_[]`":
        text = text.replace(letter, f"\\{letter}")
    return text
