"""The monitoring flow: compares a window of the log, or a scored file, with the champion's reference."""

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
from flywheel_ml.monitoring.performance.variants import VariantQuality, measure_others
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
    """Evaluate a scored file, or the champion's predictions logged with since ≤ time < until; report and raise alerts.

    Args:
        on_result: called with the result before the alerts are delivered, because delivery may fail.

    Raises:
        ConfigError: the span is empty, starts in the future, or is combined with a scored file.
        DataError: the file cannot be read.
        AlertError: the alerts were written to the file, but the webhook rejected them.
    """
    _check_span(source, since, until)
    version, opened = open_champion(project, settings)
    slices: Sequence[str] = params.evaluate.slices
    others: list[VariantQuality] = []
    if source is not None:
        rows = window.from_file(source, opened, slices)
    else:
        log = Reader(settings.prediction_log, label_horizon_us=params.monitor.label_horizon_us)
        span = (_to_us(since) if since else 0, _to_us(until) if until else None)
        rows = window.from_log(log, opened, slices, *span, version, opened.digest)
        others = measure_others(log, opened.contract, opened.digest, *span, params.monitor.confidence_level)
    rules = import_reference(project.alerts)
    found = engine.task("monitor", monitor, rows, opened, params, FOLDER, rules=rules, others=others)
    on_result(found)
    if webhook := settings.alert_webhook.get_secret_value():
        engine.task("alert", alerts.deliver, webhook, found.alerts)
    return found


def _check_span(source: Path | None, since: datetime | None, until: datetime | None) -> None:
    check_span(since, until)
    if source is not None and (since or until):
        raise ConfigError("--since and --until select from the prediction log; remove them to monitor a scored file")
    if since is not None and _to_us(since) > now_us():
        raise ConfigError(f"--since is {since:%F %T} (UTC), which is in the future; give an earlier time")


def _to_us(time: datetime) -> int:
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1_000_000)
