"""A run writes its report, and the latest report, atomically."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import report
from flywheel_ml.monitoring.run import monitor
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window
from library.helpers.windows import write_scored_file

NOW = datetime(2020, 1, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def window(tmp_path: Path, moved: pl.DataFrame, bundle: Bundle, params: Params) -> Window:
    return from_file(write_scored_file(moved, bundle, tmp_path / "scored.parquet"), bundle, params.evaluate.slices)


def test_monitor_writes_its_report_and_the_latest(
    tmp_path: Path, window: Window, bundle: Bundle, params: Params
) -> None:
    done = monitor(window, bundle, params, tmp_path / "out", NOW)
    assert done.json.name == "20200101T123000.000000Z.json"
    assert json.loads(done.json.read_text(encoding="utf-8"))["verdict"] == done.result.verdict
    for path in (done.json, done.html):
        assert path.read_bytes() == path.with_stem("latest").read_bytes()
    assert done.alerts


def test_monitor_keeps_earlier_reports(tmp_path: Path, window: Window, bundle: Bundle, params: Params) -> None:
    first = monitor(window, bundle, params, tmp_path / "out", NOW)
    second = monitor(window, bundle, params, tmp_path / "out", NOW.replace(hour=13))
    assert first.html.exists()
    assert first.html != second.html
    assert json.loads((tmp_path / "out" / "latest.json").read_text(encoding="utf-8"))["at"].startswith("2020-01-01T13")


def test_failed_monitor_run_leaves_no_report(
    tmp_path: Path, window: Window, bundle: Bundle, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "TEMPLATE", "gone.html.jinja")
    with pytest.raises(Exception, match=r"gone\.html\.jinja"):
        monitor(window, bundle, params, tmp_path / "out", NOW)
    assert not (tmp_path / "out").exists()
