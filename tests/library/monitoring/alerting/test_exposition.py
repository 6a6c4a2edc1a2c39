"""Monitoring's metrics are a valid exposition that a server accepts as a whole."""

from pathlib import Path

import polars as pl
import pytest
from prometheus_client import Metric

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.core.serving_folder import ALERT_METRICS, MONITORING_METRICS
from flywheel_ml.monitoring.alerting import exposition
from flywheel_ml.monitoring.alerting.outbox import Outbox
from flywheel_ml.monitoring.result import Result
from flywheel_ml.monitoring.run import monitor
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.serving.observability.textfile import parse
from library.helpers.sinks import NOW, make_alert
from library.helpers.windows import write_scored_file


@pytest.fixture
def result(tmp_path: Path, moved: pl.DataFrame, bundle: Bundle, params: Params) -> Result:
    path = write_scored_file(moved, bundle, tmp_path / "scored.parquet")
    return monitor(from_file(path, bundle), bundle, params, tmp_path / "out", NOW).result


def read(path: Path) -> dict[str, Metric]:
    return {family.name: family for family in parse(path.read_bytes())}


def test_result_becomes_metrics(tmp_path: Path, result: Result) -> None:
    exposition.write_result(tmp_path, result)
    found = read(tmp_path / MONITORING_METRICS)
    single = {name: family.samples[0].value for name, family in found.items() if len(family.samples) == 1}
    assert single["monitoring_last_run_timestamp_seconds"] == NOW.timestamp()
    assert single["monitoring_window_rows"] == result.volume.rows
    assert single["monitoring_label_coverage_ratio"] == result.quality.coverage == 1.0
    verdicts = {one.labels["verdict"]: one.value for one in found["monitoring_verdict"].samples}
    assert verdicts[result.verdict.replace(" ", "_")] == 1
    assert sum(verdicts.values()) == 1
    effects = {one.labels["column"]: one.value for one in found["monitoring_drift_effect"].samples}
    assert max(effects.values()) == max(test.effect for test in result.drift.comparisons)
    values = {one.labels["metric"]: one.value for one in found["monitoring_quality"].samples}
    assert values["roc_auc"] == result.quality.measures["roc_auc"].value


def test_hostile_names_are_escaped(tmp_path: Path, result: Result) -> None:
    name = 'a"b\\c\nd} 1\nmonitoring_x 2'
    tests = tuple(test.model_copy(update={"column": name}) for test in result.drift.comparisons[:1])
    drift = result.drift.model_copy(update={"comparisons": tests})
    exposition.write_result(tmp_path, result.model_copy(update={"drift": drift}))
    found = read(tmp_path / MONITORING_METRICS)
    assert [one.labels for one in found["monitoring_drift_effect"].samples] == [{"column": name}]
    assert "monitoring_x" not in found


def test_thousand_columns_give_few_series(tmp_path: Path, result: Result) -> None:
    first = result.drift.comparisons[0]
    tests = tuple(first.model_copy(update={"column": f"c{n}", "effect": n / 1000}) for n in range(1000))
    drift = result.drift.model_copy(update={"comparisons": tests})
    exposition.write_result(tmp_path, result.model_copy(update={"drift": drift}))
    columns = [one.labels["column"] for one in read(tmp_path / MONITORING_METRICS)["monitoring_drift_effect"].samples]
    assert len(columns) == exposition.MAX_COLUMNS
    assert columns[0] == "c999"


def test_alerts_become_metrics(tmp_path: Path, outbox: Outbox) -> None:
    alerts = [make_alert(), make_alert("worse", severity="critical")]
    outbox.record(alerts, "live", "d" * 64, lambda _: True, ["hook", "removed"], NOW)
    exposition.write_alerts(tmp_path, outbox, ["hook", "log"])
    found = read(tmp_path / ALERT_METRICS)
    opened = {one.labels["severity"]: one.value for one in found["monitoring_alerts_open"].samples}
    assert opened == {"critical": 1, "warning": 1, "info": 0}
    waiting = {one.labels["sink"]: one.value for one in found["monitoring_alerts_undelivered"].samples}
    assert waiting == {"hook": 2, "log": 0}
