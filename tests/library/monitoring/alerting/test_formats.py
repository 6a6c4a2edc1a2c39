"""The JSON of each webhook has every alert, within the limits of its receiver."""

import json
from datetime import datetime, timedelta

from flywheel_ml.monitoring.alerting import formats
from library.helpers.sinks import NOW, make_alert, make_notification

HOSTILE = "\"quoted\" & <!channel> *b* 'é' — \\n\nsecond line\t😀"


def test_json_keeps_the_fields_that_it_always_had() -> None:
    body = formats.format_json([make_notification(make_alert(evidence=HOSTILE))])
    assert body["text"].startswith('[warning] the data have drifted: "quoted" & <!channel>')
    (alert,) = body["alerts"]
    known = {"at", "severity", "what", "evidence", "first_steps", "runbook", "model", "source"}
    assert known <= alert.keys()
    assert alert["evidence"] == HOSTILE
    assert (alert["status"], alert["fingerprint"]) == ("firing", make_alert().fingerprint)
    assert json.loads(json.dumps(body)) == body


def test_resolved_alert_says_so_in_every_format() -> None:
    ended = [make_notification(ended=True)]
    assert "[resolved]" in formats.format_json(ended)["text"]
    assert "✅ *[resolved]" in formats.format_slack(ended)["blocks"][0]["text"]["text"]
    assert formats.format_teams(ended)["attachments"][0]["content"]["body"][0]["color"] == "Good"
    assert "Ended: 2020-01-01 13:00:00 UTC" in ended[0].text


def test_slack_text_is_escaped_and_keeps_quotes_accents_and_lines() -> None:
    body = formats.format_slack([make_notification(make_alert(evidence=HOSTILE))])
    text = body["blocks"][0]["text"]["text"]
    assert "\"quoted\" &amp; &lt;!channel&gt; *b* 'é' — \\n\nsecond line\t😀" in text
    assert "<!channel>" not in json.dumps(body)
    assert "• Look at the plots." in text


def test_slack_message_stays_within_its_limits() -> None:
    many = [make_notification(make_alert(f"rule {number}", "&<>" * 600)) for number in range(20)]
    body = formats.format_slack(many)
    assert len(body["blocks"]) <= 50
    for block in body["blocks"]:
        text = block["text"]["text"] if block["type"] == "section" else block["elements"][0]["text"]
        assert len(text) <= 3000
        # No entity was cut apart.
        assert text.count("&") == text.count(";")
    assert len(body["text"]) <= 3000


def test_teams_message_is_an_adaptive_card_below_28_kb() -> None:
    many = [make_notification(make_alert(f"rule {number}", HOSTILE * 100)) for number in range(20)]
    (attachment,) = formats.format_teams(many)["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert attachment["content"]["type"] == "AdaptiveCard"
    assert len(json.dumps(formats.format_teams(many), ensure_ascii=False).encode()) < 28_000


def test_teams_text_cannot_hold_a_link() -> None:
    body = formats.format_teams([make_notification(make_alert(evidence="[click](https://x.invalid)"))])
    assert body["attachments"][0]["content"]["body"][1]["text"] == "\\[click\\](https://x.invalid)"


def test_alertmanager_labels_stay_the_same_until_resolved() -> None:
    begins = formats.format_alertmanager([make_notification(make_alert(evidence="a"))], NOW)[0]
    ends = formats.format_alertmanager([make_notification(make_alert(evidence="b"), ended=True)], NOW)[0]
    assert begins["labels"] == ends["labels"]
    assert begins["labels"]["alertname"] == "Drift"
    assert "column" not in begins["labels"]  # Alertmanager drops empty labels.
    assert datetime.fromisoformat(begins["endsAt"]) > NOW + timedelta(days=7)
    assert ends["endsAt"] == "2020-01-01T13:00:00+00:00"
