"""Monitor one window: judge it, write the report, keep the alerts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import alerts, report
from flywheel_ml.monitoring.result import Result, evaluate_window
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils.files import replacing

ALERTS = "alerts.jsonl"


class MonitoringRun(NamedTuple):
    """What one run found, and where it wrote it."""

    result: Result
    alerts: tuple[alerts.Alert, ...]
    json: Path
    html: Path


def monitor(
    window: Window,
    bundle: Bundle,
    params: Params,
    out_dir: Path,
    now: datetime | None = None,
    rules: Sequence[alerts.Rule] = alerts.STANDARD,
) -> MonitoringRun:
    """Judge a window and write `<stamp>.json`, `<stamp>.html`, the same as `latest.*`, and new lines of `alerts.jsonl`.

    Every file is whole or absent. Delivering the alerts is the caller's part (`alerts.deliver`).

    Args:
        window: the rows, counted against this bundle's reference.
        bundle: the model.
        params: thresholds, costs and slices.
        out_dir: the reports' folder, made if absent.
        now: time of the judgement, aware; the present one by default.
        rules: what raises alerts.
    """
    at = (now or datetime.now(UTC)).astimezone(UTC)
    result = evaluate_window(window, bundle, params, at)
    texts = {"json": result.to_json(), "html": report.render_html(result, window, bundle)}
    stamp = f"{at:%Y%m%dT%H%M%S.%fZ}"
    for name in (stamp, "latest"):
        for suffix, text in texts.items():
            with replacing(out_dir / f"{name}.{suffix}") as part:
                part.write_text(text, encoding="utf-8")
    raised = alerts.build_alerts(result, rules)
    alerts.append(out_dir / ALERTS, raised)
    return MonitoringRun(result, raised, out_dir / f"{stamp}.json", out_dir / f"{stamp}.html")
