"""The monitoring flow: a window of the log or a scored file against the champion's reference."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from .. import stage
from ..monitoring import alerts, window
from ..monitoring.run import Monitored, monitor
from ..params import Params
from ..prediction_log import Reader
from ..settings import Settings
from . import engine
from .scoring import champion

FOLDER = stage.REPORTS / "monitoring"


def watch(
    settings: Settings,
    params: Params,
    source: Path | None,
    since: datetime | None,
    until: datetime | None,
    tell: Callable[[Monitored], object] = id,
) -> Monitored:
    """Judge a scored file, or the champion's predictions logged with since ≤ time < until; report, and raise alerts.

    Args:
        tell: called with what was found before alerts are delivered, which may fail.

    Raises:
        DataError: the file cannot be read.
        AlertError: the alerts are on file, but the webhook did not take them.
    """
    version, opened = champion(settings)
    slices: Sequence[str] = params.evaluate.slices
    if source is not None:
        rows = window.from_file(source, opened, slices)
    else:
        log, span = Reader(settings.prediction_log), (_us(since) or 0, _us(until))
        rows = window.from_log(log, opened, slices, *span, version, opened.digest)
    found = engine.task("monitor", monitor, rows, opened, params, FOLDER)
    tell(found)
    if webhook := settings.alert_webhook.get_secret_value():
        engine.task("alert", alerts.deliver, webhook, found.alerts)
    return found


def _us(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1_000_000)
