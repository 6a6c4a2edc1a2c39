"""The names that a project's `alerts.py` uses: what a rule yields, and what a sink receives."""

from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.rules import STANDARD_RULES, Alert, Finding, Rule
from flywheel_ml.monitoring.alerting.sinks import SendFunction

__all__ = ["STANDARD_RULES", "Alert", "Finding", "Notification", "Rule", "SendFunction"]
