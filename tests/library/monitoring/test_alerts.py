"""Alerts report every finding once, and failed deliveries are reported."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import alerts
from flywheel_ml.monitoring.run import monitor
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.utils.errors import ConfigError
from library.helpers.windows import write_scored_file


class Hook(HTTPServer):
    """A webhook that keeps what it is sent and answers with `status`."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/T0KEN"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def raised(tmp_path: Path, moved: pl.DataFrame, bundle: Bundle, params: Params) -> tuple[alerts.Alert, ...]:
    """The alerts of a window whose data moved."""
    window = from_file(
        write_scored_file(moved.drop(bundle.contract.target.name), bundle, tmp_path / "scored.parquet"), bundle
    )
    return monitor(window, bundle, params, tmp_path / "out").alerts


def test_drifted_window_raises_a_warning_with_first_steps(raised: tuple[alerts.Alert, ...]) -> None:
    warning = next(alert for alert in raised if alert.what == "the data have drifted")
    assert warning.severity == "warning"
    assert warning.evidence.startswith("changed: ")
    assert warning.first_steps
    assert warning.runbook == "docs/runbook.md#drift"


def test_window_without_findings_raises_no_alert(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    window = from_file(write_scored_file(alike, bundle, tmp_path / "scored.parquet"), bundle)
    assert monitor(window, bundle, params, tmp_path / "out").alerts == ()
    assert not (tmp_path / "out" / "alerts.jsonl").exists()


def test_degraded_model_raises_a_critical_alert(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    target = bundle.contract.target.name
    wrong = alike.with_columns(~pl.col(target))
    window = from_file(write_scored_file(wrong, bundle, tmp_path / "scored.parquet"), bundle)
    assert monitor(window, bundle, params, tmp_path / "out").alerts[0].severity == "critical"


def test_alerts_are_appended_one_line_each(tmp_path: Path, raised: tuple[alerts.Alert, ...]) -> None:
    path = tmp_path / "folder" / "alerts.jsonl"
    alerts.append(path, raised)
    alerts.append(path, raised)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["what"] for line in lines] == [alert.what for alert in raised] * 2


def test_webhook_receives_alerts_and_a_text(hook: Hook, raised: tuple[alerts.Alert, ...]) -> None:
    alerts.deliver(hook.url, raised)
    assert len(hook.bodies) == 1
    assert [alert["what"] for alert in hook.bodies[0]["alerts"]] == [alert.what for alert in raised]
    assert "[warning] the data have drifted" in hook.bodies[0]["text"]


def test_webhook_receives_nothing_without_alerts(hook: Hook) -> None:
    alerts.deliver(hook.url, ())
    assert hook.bodies == []


def test_rejecting_webhook_is_reported_without_its_address(hook: Hook, raised: tuple[alerts.Alert, ...]) -> None:
    hook.status = 500
    with pytest.raises(alerts.AlertError, match="answered 500") as error:
        alerts.deliver(hook.url, raised)
    assert "T0KEN" not in str(error.value)


def test_unreachable_webhook_is_reported(hook: Hook, raised: tuple[alerts.Alert, ...]) -> None:
    with pytest.raises(alerts.AlertError, match="not delivered"):
        alerts.deliver("http://127.0.0.1:9/T0KEN", raised, timeout=2)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "T0KEN"])
def test_webhook_address_must_be_http(url: str, raised: tuple[alerts.Alert, ...]) -> None:
    with pytest.raises(ConfigError, match="ML_ALERT_WEBHOOK"):
        alerts.deliver(url, raised)
