"""The monitoring flow: compares a window of the log, or a scored file, with a reference."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.core import paths
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import TEST_ROWS, Params
from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.data.window import check_span
from flywheel_ml.flows.alerting import open_sinks
from flywheel_ml.flows.bundles import find_logged, open_champion, open_version
from flywheel_ml.flows.canary.errors import build_rule
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.retraining.age import build_age_rule
from flywheel_ml.flows.retraining.policy import silence
from flywheel_ml.monitoring.alerting.notify import notify
from flywheel_ml.monitoring.alerting.outbox import LIVE
from flywheel_ml.monitoring.performance.variants import VariantQuality, measure_others
from flywheel_ml.monitoring.reference import Reference
from flywheel_ml.monitoring.run import MonitoringRun, monitor
from flywheel_ml.monitoring.sources.log_reference import read_reference
from flywheel_ml.monitoring.sources.log_window import Log, Span, read_window
from flywheel_ml.monitoring.sources.profile_store import ModelKey, ProfileStore
from flywheel_ml.monitoring.sources.profiling import update_profiles
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window
from flywheel_ml.prediction_log import Reader, now_us, to_datetime
from flywheel_ml.prediction_log.selection import HOUR_US
from flywheel_ml.utils.errors import ConfigError

FOLDER = paths.REPORTS / "monitoring"
LATEST, LATEST_FILE = "latest", "latest-file"
"""Names of the latest reports: of the log, and of a scored file, which must not hide the state of the log."""


class WindowQuery(NamedTuple):
    """Which rows to monitor, and what to compare them with.

    Attributes:
        scored: a scored file; the prediction log if not given.
        since, until: span of the log, since ≤ time < until, in UTC if they name no time zone.
        version: version of the model; the champion if not given.
        reference: name of the reference; that of params.yaml if not given.
    """

    scored: Path | None = None
    since: datetime | None = None
    until: datetime | None = None
    version: str | None = None
    reference: str | None = None

    @property
    def is_current(self) -> bool:
        """Whether the window shows the current state of the champion."""
        return self.until is None and self.version is None


def monitor_window(
    project: Project,
    settings: Settings,
    params: Params,
    source: Path | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    on_result: Callable[[MonitoringRun], object] = id,
    version: str | None = None,
    reference: str | None = None,
) -> MonitoringRun:
    """Evaluate a scored file, or a model's predictions logged with since ≤ time < until; report and raise alerts.

    Args:
        project: the project.
        settings: where the log and the serving folder are.
        params: thresholds and references.
        source, since, until, version, reference: as in `WindowQuery`.
        on_result: called with the result before the alerts are delivered, because delivery may fail.

    Raises:
        ConfigError: the span is empty, starts in the future, holds no row of the model, or does not go with a scored
            file; or the reference is unknown or has no rows.
        DataError: the file cannot be read.
        AlertError: a sink did not accept its alerts, which are kept.
    """
    query = WindowQuery(source, since, until, version, reference)
    _check(query)
    sinks = open_sinks(project, settings)
    number, opened = (
        open_champion(project, settings) if version is None else (version, open_version(project, settings, version))
    )
    rows, compared, others = _read(project, settings, params, query, ModelKey(number, opened.digest), opened)
    own = (build_rule(settings, params), build_age_rule(settings, params)) if source is None else ()
    rules = silence((*import_reference(project.alerts), *own), params.policy)
    found = engine.task(
        "monitor",
        monitor,
        rows,
        opened,
        params,
        FOLDER,
        rules=rules,
        reference=compared,
        others=others,
        is_current=query.is_current,
        latest=LATEST if source is None else LATEST_FILE,
    )
    on_result(found)
    if query.is_current:
        scope = LIVE if source is None else f"file {source}"
        engine.task("alert", notify, found.result, found.alerts, sinks, settings, paths.OUTBOX, scope)
    return found


def _read(
    project: Project, settings: Settings, params: Params, query: WindowQuery, model: ModelKey, bundle: Bundle
) -> tuple[Window, Reference, list[VariantQuality]]:
    slices = params.evaluate.slices
    name = query.reference or params.monitor.reference
    if query.scored is not None:
        if name != TEST_ROWS:
            raise ConfigError(f"reference '{name}' is for windows of the log; pass --reference {TEST_ROWS}")
        return from_file(query.scored, bundle, slices), Reference.of_test_rows(bundle), []
    time_us, reader = now_us(), Reader(settings.prediction_log, label_horizon_us=params.monitor.label_horizon_us)
    hours = list(reader.count_hours())
    since_us = _to_us(query.since) if query.since else hours[0] * HOUR_US if hours else 0
    span = Span(since_us, _to_us(query.until) if query.until else time_us + 1)
    with ExitStack() as stack:
        store = None
        if hours:
            store = stack.enter_context(ProfileStore(settings.prediction_log))
            engine.task(
                "profile", update_profiles, reader, store, lambda key: find_logged(project, settings, key), time_us
            )
        log = Log(reader, store)
        window = read_window(log, bundle, model, span, slices)
        if not window.rows and not query.is_current:
            raise ConfigError(_describe_empty(hours, model, query.since, span))
        others = measure_others(log, bundle.contract, bundle.digest, span, params.monitor.confidence_level)
        return window, read_reference(name, params.monitor, log, bundle, span), others


def _describe_empty(hours: Sequence[int], model: ModelKey, since: datetime | None, span: Span) -> str:
    if not hours:
        return "the prediction log is empty; there is nothing to monitor"
    first, last = (f"{to_datetime(hour * HOUR_US):%F %H:%M}" for hour in (hours[0], hours[-1] + 1))
    start = f"{since:%F %H:%M}" if since else "the start"
    return (
        f"the log has no row of version {model.version} from {start} to {to_datetime(span.until_us):%F %H:%M}; "
        f"it spans {first} to {last} (UTC)"
    )


def _check(query: WindowQuery) -> None:
    check_span(query.since, query.until)
    if query.scored is not None:
        if query.since or query.until:
            raise ConfigError(
                "--since and --until select from the prediction log; remove them to monitor a scored file"
            )
        if query.version is not None:
            raise ConfigError("--version selects from the prediction log; remove it to monitor a scored file")
    if query.since is not None and _to_us(query.since) > now_us():
        raise ConfigError(f"--since is {query.since:%F %T} (UTC), which is in the future; give an earlier time")


def _to_us(time: datetime) -> int:
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1_000_000)
