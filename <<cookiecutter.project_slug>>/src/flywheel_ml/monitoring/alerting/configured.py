"""The sinks that the settings and the project configure."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting import formats, log_file, mail
from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.sinks import SendFunction, Sink
from flywheel_ml.monitoring.alerting.webhooks import Address, post_json
from flywheel_ml.utils.errors import ConfigError

ALERTMANAGER_PATH = "/api/v2/alerts"


def build_sinks(settings: Settings, log: Path, custom: Sequence[SendFunction] = ()) -> tuple[Sink, ...]:
    """Build the sinks: the log file, those of the settings, and the project's own functions.

    Args:
        settings: addresses and secrets.
        log: path of the log file.
        custom: functions of the project; the name of a function is the name of its sink.

    Raises:
        ConfigError: an address is invalid, or two sinks have the same name.
    """
    sinks = [Sink("log", str(log), partial(log_file.append, log)), *_build_http_sinks(settings)]
    if settings.alert_email_to:
        mail.check_settings(settings)
        sinks.append(Sink("email", "ML_ALERT_SMTP_HOST", partial(mail.send_email, settings)))
    for function in custom:
        name = getattr(function, "__name__", type(function).__name__)
        if not callable(function):
            raise ConfigError(f"alerts.py: SINKS: '{function}' is not a function")
        if name in {sink.name for sink in sinks}:
            raise ConfigError(f"alerts.py: SINKS: there is a sink '{name}' already; rename the function")
        sinks.append(Sink(name, "alerts.py: SINKS", function))
    return tuple(sinks)


def _build_http_sinks(settings: Settings) -> list[Sink]:
    sinks, timeout = [], settings.alert_timeout_seconds
    webhooks: tuple[tuple[str, str, Callable[[Sequence[Notification]], Any]], ...] = (
        ("webhook", settings.alert_webhook.get_secret_value(), formats.format_json),
        ("slack", settings.alert_slack_webhook.get_secret_value(), formats.format_slack),
        ("teams", settings.alert_teams_webhook.get_secret_value(), formats.format_teams),
    )
    for name, url, build in webhooks:
        if url:
            setting = "ML_ALERT_WEBHOOK" if name == "webhook" else f"ML_ALERT_{name.upper()}_WEBHOOK"
            sinks.append(Sink(name, setting, partial(_post, Address(url, setting), build, timeout)))
    if url := settings.alert_alertmanager.get_secret_value():
        setting = "ML_ALERT_ALERTMANAGER"
        address = Address(url.rstrip("/") + ALERTMANAGER_PATH, setting)
        sinks.append(Sink("alertmanager", setting, partial(_post, address, _format_now, timeout), is_reminded=True))
    return sinks


def _post(
    address: Address,
    build: Callable[[Sequence[Notification]], Any],
    timeout: float,
    notifications: Sequence[Notification],
) -> None:
    post_json(address, build(notifications), timeout)


def _format_now(notifications: Sequence[Notification]) -> Any:
    return formats.format_alertmanager(notifications, datetime.now(UTC))
