"""Notifies the sinks of what a run found: records, publishes metrics, delivers."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting import exposition
from flywheel_ml.monitoring.alerting.delivery import Delivery, RetryPolicy, deliver, raise_faults
from flywheel_ml.monitoring.alerting.outbox import LIVE, Outbox
from flywheel_ml.monitoring.alerting.rules import Alert, can_end
from flywheel_ml.monitoring.alerting.sinks import Sink
from flywheel_ml.monitoring.result import Result


def notify(
    result: Result, alerts: Sequence[Alert], sinks: Sequence[Sink], settings: Settings, outbox: Path, scope: str = LIVE
) -> None:
    """Record the alerts of a run in the outbox, write the metrics, and deliver.

    Args:
        result: what the run found.
        alerts: its alerts.
        sinks: the configured sinks.
        settings: timeout, retries and the serving folder.
        outbox: folder of the outbox.
        scope: what was evaluated. A condition ends in a run of the same scope that no longer finds it.

    Raises:
        AlertError: a sink did not accept its notifications; the outbox keeps them.
        OutboxError: the outbox cannot be written.
    """
    box, names = open_outbox(outbox), [sink.name for sink in sinks]
    changes = box.record(
        alerts, scope, result.model.digest, lambda rule: can_end(result, rule), names, datetime.now(UTC)
    )
    if scope == LIVE:
        _publish(lambda: exposition.write_result(settings.serving_folder, result))
    raise_faults(deliver_queued(box, sinks, settings), box.count_waiting(), changes.rejected)


def deliver_queued(outbox: Outbox, sinks: Sequence[Sink], settings: Settings) -> list[Delivery]:
    """Deliver what the outbox holds, and write the metrics of the alerts before and after."""
    names = [sink.name for sink in sinks]
    policy = RetryPolicy(settings.alert_timeout_seconds, settings.alert_retries)
    _publish(lambda: exposition.write_alerts(settings.serving_folder, outbox, names))
    done = deliver(outbox, sinks, policy)
    _publish(lambda: exposition.write_alerts(settings.serving_folder, outbox, names))
    return done


def open_outbox(folder: Path) -> Outbox:
    """Open the outbox; a damaged one is moved aside, with a warning.

    Raises:
        OutboxError: the folder cannot be written.
    """
    outbox = Outbox(folder)
    if outbox.moved_aside:
        warning = "the outbox of alerts was damaged and moved to %s; conditions that last are sent again"
        logging.getLogger(__name__).warning(warning, outbox.moved_aside)
    return outbox


def _publish(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        # In a container the serving folder is read-only. The alerts are delivered anyway.
        logging.getLogger(__name__).warning("the metrics of monitoring were not written: %s", error)
