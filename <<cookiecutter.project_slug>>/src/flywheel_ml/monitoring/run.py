"""Monitors one window: evaluates it, writes the reports and builds the alerts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import report
from flywheel_ml.monitoring.alerting.rules import STANDARD_RULES, Alert, Rule, build_alerts
from flywheel_ml.monitoring.performance.variants import VariantQuality
from flywheel_ml.monitoring.reference import Reference
from flywheel_ml.monitoring.result import Result, evaluate_window
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils.files import replacing


class MonitoringRun(NamedTuple):
    """The findings of one run and the paths of its reports."""

    result: Result
    alerts: tuple[Alert, ...]
    json: Path
    html: Path


def monitor(
    window: Window,
    bundle: Bundle,
    params: Params,
    out_dir: Path,
    now: datetime | None = None,
    rules: Sequence[Rule] = STANDARD_RULES,
    reference: Reference | None = None,
    is_current: bool = True,
    others: Sequence[VariantQuality] = (),
    latest: str = "latest",
) -> MonitoringRun:
    """Evaluate a window; write `<timestamp>.json` and `.html`, and copies as `<latest>.*`.

    Every file is written atomically. The caller notifies the sinks of the alerts (`alerting.notify`). A window that
    does not show the current state of the champion raises no alert and does not replace `<latest>.*`.

    Args:
        window: the rows, counted in the bins of this bundle's reference.
        bundle: the model.
        params: thresholds, costs and slices.
        out_dir: folder of the reports, created if absent.
        now: current time, aware; taken from the clock by default.
        rules: rules that raise alerts.
        reference: the rows to compare with; the test rows by default.
        is_current: whether the window shows the current state of the champion.
        others: what other models answered in the same span, for the report.
        latest: name of the copies, without suffix.
    """
    at = (now or datetime.now(UTC)).astimezone(UTC)
    result = evaluate_window(window, bundle, params, at, reference, others)
    texts = {"json": result.to_json(), "html": report.render_html(result, window, bundle, reference)}
    stamp = f"{at:%Y%m%dT%H%M%S.%fZ}"
    for name in (stamp, latest) if is_current else (stamp,):
        for suffix, text in texts.items():
            with replacing(out_dir / f"{name}.{suffix}") as part:
                part.write_text(text, encoding="utf-8")
    raised = build_alerts(result, rules) if is_current else ()
    return MonitoringRun(result, raised, out_dir / f"{stamp}.json", out_dir / f"{stamp}.html")
