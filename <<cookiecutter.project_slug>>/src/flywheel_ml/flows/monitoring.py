"""The monitoring flow: a window of the log or a scored file against the champion's reference."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flywheel_ml.core import paths
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.data.window import check_span
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.scoring import open_champion
from flywheel_ml.monitoring import alerts, window
from flywheel_ml.monitoring.run import MonitoringRun, monitor
from flywheel_ml.prediction_log import Reader, now_us
from flywheel_ml.utils.errors import ConfigError

FOLDER = paths.REPORTS / "monitoring"


def monitor_window(
    project: Project,
    settings: Settings,
    params: Params,
    source: Path | None,
    since: datetime | None,
    until: datetime | None,
    on_result: Callable[[MonitoringRun], object] = id,
) -> MonitoringRun:
    """Judge a scored file, or the champion's predictions logged with since ≤ time < until; report, and raise alerts.

    Args:
        on_result: called with what was found before alerts are delivered, which may fail.

    Raises:
        ConfigError: the span has no moment, or lies in the future, or goes with a scored file.
        DataError: the file cannot be read.
        AlertError: the alerts are on file, but the webhook did not take them.
    """
    _check_span(source, since, until)
    version, opened = open_champion(project, settings)
    slices: Sequence[str] = params.evaluate.slices
    if source is not None:
        rows = window.from_file(source, opened, slices)
    else:
        log, span = Reader(settings.prediction_log), (_to_us(since) if since else 0, _to_us(until) if until else None)
        rows = window.from_log(log, opened, slices, *span, version, opened.digest)
    found = engine.task("monitor", monitor, rows, opened, params, FOLDER, rules=import_reference(project.alerts))
    on_result(found)
    if webhook := settings.alert_webhook.get_secret_value():
        engine.task("alert", alerts.deliver, webhook, found.alerts)
    return found


def _check_span(source: Path | None, since: datetime | None, until: datetime | None) -> None:
    check_span(since, until)
    if source is not None and (since or until):
        raise ConfigError("--since and --until choose from the prediction log; a scored file is judged as a whole")
    if since is not None and _to_us(since) > now_us():
        raise ConfigError(f"--since is {since:%F %T} (UTC), which lies in the future; give an earlier moment")


def _to_us(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1_000_000)
