"""Alerts outside of a monitoring run: their sinks, their delivery, and a test of them."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from flywheel_ml.core import paths
from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting import delivery, notify
from flywheel_ml.monitoring.alerting.configured import build_sinks
from flywheel_ml.monitoring.alerting.delivery import AlertError, Delivery, RetryPolicy
from flywheel_ml.monitoring.alerting.notification import build_test_notification
from flywheel_ml.monitoring.alerting.outbox import OpenAlert
from flywheel_ml.monitoring.alerting.sinks import Sink

LOG = paths.REPORTS / "monitoring" / "alerts.jsonl"


def open_sinks(project: Project, settings: Settings) -> tuple[Sink, ...]:
    """Return the log file, the sinks of the settings and those of the project.

    Raises:
        ConfigError: a setting or a sink of the project is invalid.
    """
    custom = import_reference(project.sinks) if project.sinks else ()
    return build_sinks(settings, LOG, custom)


def deliver_queued(
    project: Project,
    settings: Settings,
    on_open: Callable[[Sequence[OpenAlert]], object],
    on_deliveries: Callable[[Sequence[Delivery]], object],
) -> None:
    """Deliver the alerts that a sink has not accepted yet.

    Args:
        on_open: called with the open alerts before the delivery.
        on_deliveries: called with what happened at each sink.

    Raises:
        AlertError: a sink failed; the outbox keeps its alerts.
    """
    sinks, outbox = open_sinks(project, settings), notify.open_outbox(paths.OUTBOX)
    on_open(outbox.list_open())
    done = notify.deliver_queued(outbox, sinks, settings)
    on_deliveries(done)
    delivery.raise_faults(done, outbox.count_waiting())


def send_test_alert(
    project: Project, settings: Settings, on_deliveries: Callable[[Sequence[Delivery]], object]
) -> None:
    """Send one test alert to every sink, once.

    Raises:
        AlertError: a sink did not accept it.
    """
    sinks, policy = open_sinks(project, settings), RetryPolicy(settings.alert_timeout_seconds, 0)
    done = delivery.send_test(sinks, build_test_notification(datetime.now(UTC)), policy)
    on_deliveries(done)
    if failed := [f"{one.sink.name} ({one.sink.setting})" for one in done if one.fault]:
        raise AlertError(f"the test alert was not accepted by {', '.join(failed)}; see .env.example for the settings")
