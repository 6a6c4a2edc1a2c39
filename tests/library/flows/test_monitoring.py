"""A window of the log or of a file becomes a verdict, a report and alerts, which a webhook may fail to take."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from flywheel_ml.core import paths, serving_folder
from flywheel_ml.core.bundle import MANIFEST, Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.params import Params, ScoreParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import alerting, monitoring, scoring
from flywheel_ml.monitoring.alerting.delivery import AlertError, Delivery
from flywheel_ml.monitoring.alerting.outbox import OpenAlert
from flywheel_ml.monitoring.run import MonitoringRun
from flywheel_ml.prediction_log import Outcome, Prediction, Writer, dumps, new_id, now_us, to_datetime
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.files import sha256_file
from library.helpers import rows
from library.helpers.project import PROJECT, ROOT
from library.helpers.sinks import Hook, serve
from library.helpers.windows import HOUR_US, START_US, LoggedModel, write_log


@pytest.fixture
def settings(tmp_path: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tiny bundle is champion of the current folder."""
    monkeypatch.chdir(tmp_path)
    found = Settings()
    ref = serving_folder.BundleRef(version="7", digest=sha256_file(bundle_path / MANIFEST))
    shutil.copytree(bundle_path, serving_folder.bundle_folder(found.serving_folder, ref))
    now = serving_folder.Routing(name="small", champion=ref, updated_at="2013-11-01T00:00:00+00:00")
    serving_folder.write_routing(found.serving_folder, now)
    return found


def drifted(contract: Contract) -> pl.DataFrame:
    """Rows in which the first ranged column sits at the top of its range."""
    table = rows.make_table(contract, 1500, seed=5)
    column = next(column for column in contract.inputs if column.range is not None)
    assert column.range is not None
    top = pl.lit(column.range[1]).cast(table.schema[column.name])
    return table.with_columns(top.alias(column.name))


def test_a_scored_file_is_judged_and_reported(settings: Settings, params: Params, contract: Contract) -> None:
    tables.write(drifted(contract), Path("in.parquet"))
    scoring.score(PROJECT, Path("in.parquet"), Path("out.parquet"), settings, ScoreParams())
    found = monitoring.monitor_window(PROJECT, settings, params, Path("out.parquet"), None, None)
    assert found.result.verdict in ("drift", "degraded")
    assert found.result.volume.rows == 1500
    assert json.loads(Path("reports/monitoring/latest-file.json").read_text())["verdict"] == found.result.verdict
    assert not Path("reports/monitoring/latest.json").exists(), "it shows the log"


@pytest.mark.parametrize(
    ("source", "since", "until", "message"),
    [
        (None, datetime(2026, 2, 1), datetime(2026, 1, 1), "--since must be the earlier one"),
        (None, datetime(2026, 1, 1), datetime(2026, 1, 1), "--since must be the earlier one"),
        (None, datetime(2026, 1, 1, 2), datetime(2026, 1, 1, 1, tzinfo=UTC), "--since must be the earlier one"),
        (None, datetime(2200, 1, 1), None, "is in the future"),
        (Path("scored.parquet"), datetime(2026, 1, 1), None, "remove them to monitor a scored file"),
    ],
)
def test_empty_span_is_rejected(
    settings: Settings, params: Params, source: Path | None, since: datetime, until: datetime | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        monitoring.monitor_window(PROJECT, settings, params, source, since, until)


def test_logged_predictions_of_a_span_are_judged_with_their_labels(
    settings: Settings, params: Params, contract: Contract, table: pl.DataFrame, columns: Columns, bundle_path: Path
) -> None:
    answers = Bundle.open(bundle_path).predict(columns)
    start = now_us()
    labels = table[contract.target.name].to_list()
    ids = [new_id() for _ in labels]
    inputs = json_rows(table, contract)
    with Writer(settings.prediction_log, "serve") as log:
        done = [
            log.append(
                [
                    Prediction(
                        ids[at],
                        start + at,
                        None,
                        None,
                        "champion",
                        "7",
                        None,
                        dumps(inputs[at]),
                        "{}",
                        float(score),
                        10,
                        False,
                    ),
                    Outcome(ids[at], start + at, json.dumps(labels[at])),
                ]
            )
            for at, score in enumerate(answers.scores[:600])
        ]
        for future in done:
            future.result()
        # Another model that had this number, in a registry that was lost.
        other = Prediction(
            new_id(), start, None, None, "champion", "7", "e" * 64, dumps(inputs[0]), "{}", 0.5, 1, False
        )
        mine = other._replace(id=new_id(), model_version="3", model_digest=Bundle.open(bundle_path).digest)
        log.append([other, mine]).result()
    whole = monitoring.monitor_window(PROJECT, settings, params, None, None, None)
    assert whole.result.volume.rows == 601
    assert whole.result.versions == {"3": 1, "7": 600}
    assert any(told.startswith("600 rows were logged before model digests") for told in whole.result.sentences)
    assert whole.result.quality.labelled == 600
    assert (
        monitoring.monitor_window(PROJECT, settings, params, None, whole.result.at, None).result.verdict
        == "insufficient data"
    )


@pytest.fixture
def scored(settings: Settings, contract: Contract) -> Path:
    """A scored file whose data drifted."""
    tables.write(drifted(contract), Path("in.parquet"))
    scoring.score(PROJECT, Path("in.parquet"), Path("out.parquet"), settings, ScoreParams())
    return Path("out.parquet")


def test_failed_webhook_keeps_alerts_and_reports_verdict_first(
    settings: Settings, params: Params, scored: Path
) -> None:
    # Nothing listens on the discard port of this machine.
    deaf = settings.model_copy(update={"alert_webhook": SecretStr("http://127.0.0.1:9/T0KEN"), "alert_retries": 0})
    seen: list[MonitoringRun] = []
    with pytest.raises(AlertError, match=r"were not delivered: webhook \(ML_ALERT_WEBHOOK\) is unreachable") as error:
        monitoring.monitor_window(PROJECT, deaf, params, scored, None, None, seen.append)
    assert "T0KEN" not in str(error.value)
    assert seen[0].alerts
    log = Path("reports/monitoring/alerts.jsonl")
    assert log.read_text().count("\n") == len(seen[0].alerts)
    hook = Hook()
    with serve(hook):
        heard = settings.model_copy(update={"alert_webhook": SecretStr(hook.url)})
        for _ in range(2):
            monitoring.monitor_window(PROJECT, heard, params, scored, None, None)
    assert len(hook.list_statuses()) == len(seen[0].alerts)
    assert log.read_text().count("\n") == len(seen[0].alerts)


def test_queued_alerts_are_delivered_without_a_monitoring_run(settings: Settings, params: Params, scored: Path) -> None:
    deaf = settings.model_copy(update={"alert_webhook": SecretStr("http://127.0.0.1:9/"), "alert_retries": 0})
    with pytest.raises(AlertError):
        monitoring.monitor_window(PROJECT, deaf, params, scored, None, None)
    opened: list[Sequence[OpenAlert]] = []
    with pytest.raises(AlertError):
        alerting.deliver_queued(PROJECT, deaf, opened.append, list)
    assert {one.waiting for one in opened[0]} == {("webhook",)}
    hook = Hook()
    with serve(hook):
        heard = settings.model_copy(update={"alert_webhook": SecretStr(hook.url)})
        alerting.deliver_queued(PROJECT, heard, opened.append, list)
    assert len(hook.list_statuses()) == len(opened[0])


def test_project_has_sinks_of_its_own(
    settings: Settings, params: Params, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_sinks.py").write_text(
        "from pathlib import Path\n"
        "def page(notifications):\n"
        "    with Path('paged.txt').open('a') as file:\n"
        "        file.writelines(one.line + '\\n' for one in notifications)\n"
        "SINKS = (page,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        found = monitoring.monitor_window(replace(PROJECT, sinks="own_sinks:SINKS"), settings, params, scored)
    assert Path("paged.txt").read_text().count("\n") == len(found.alerts)
    with pytest.raises(ConfigError, match=r"project\.py: 'own_sinks:NONE' cannot be imported"):
        alerting.open_sinks(replace(PROJECT, sinks="own_sinks:NONE"), settings)
    # A project that was made before there were sinks.
    assert [sink.name for sink in alerting.open_sinks(replace(PROJECT, sinks=""), settings)] == ["log"]


def test_test_alert_names_the_sinks_that_failed(settings: Settings) -> None:
    deaf = settings.model_copy(update={"alert_webhook": SecretStr("http://127.0.0.1:9/")})
    seen: list[Sequence[Delivery]] = []
    alerting.send_test_alert(PROJECT, settings, seen.append)
    with pytest.raises(AlertError, match=r"not accepted by webhook \(ML_ALERT_WEBHOOK\);"):
        alerting.send_test_alert(PROJECT, deaf, seen.append)
    assert [[one.accepted for one in found] for found in seen] == [[1], [1, 0]]


def test_invalid_sink_is_rejected_before_anything_is_written(settings: Settings, params: Params, scored: Path) -> None:
    broken = settings.model_copy(update={"alert_webhook": SecretStr("T0KEN")})
    with pytest.raises(ConfigError, match="ML_ALERT_WEBHOOK"):
        monitoring.monitor_window(PROJECT, broken, params, scored, None, None)
    assert not Path("reports").exists()


def test_scored_file_publishes_no_metrics_of_a_window(settings: Settings, params: Params, scored: Path) -> None:
    monitoring.monitor_window(PROJECT, settings, params, scored, None, None)
    assert not (settings.serving_folder / serving_folder.MONITORING_METRICS).exists()
    assert (settings.serving_folder / serving_folder.ALERT_METRICS).exists()
    monitoring.monitor_window(PROJECT, settings, params, None, None, None)
    assert (settings.serving_folder / serving_folder.MONITORING_METRICS).exists()


def test_read_only_serving_folder_costs_only_the_metrics(
    settings: Settings, params: Params, scored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.serving_folder / serving_folder.ALERT_METRICS).mkdir()
    monitoring.monitor_window(PROJECT, settings, params, scored, None, None)
    assert "metrics of monitoring were not written" in caplog.text
    assert Path("reports/monitoring/alerts.jsonl").exists()


def test_past_window_leaves_the_latest_report_and_the_alerts(
    settings: Settings, params: Params, contract: Contract, bundle_path: Path
) -> None:
    bundle, frame, start = Bundle.open(bundle_path), drifted(contract), now_us() - 5 * HOUR_US
    write_log(settings.prediction_log, frame, bundle, LoggedModel("7", bundle.digest), [start] * frame.height)
    current = monitoring.monitor_window(PROJECT, settings, params)
    latest = Path("reports/monitoring/latest.json").read_bytes()
    past = monitoring.monitor_window(PROJECT, settings, params, until=to_datetime(start + 1))
    assert past.result.verdict == current.result.verdict == "drift"
    assert current.alerts
    assert past.alerts == ()
    assert past.html.is_file()
    opened: list[Sequence[OpenAlert]] = []
    alerting.deliver_queued(PROJECT, settings, opened.append, list)
    assert len(opened[0]) == len(current.alerts)
    assert Path("reports/monitoring/latest.json").read_bytes() == latest


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"source": Path("scored.parquet"), "version": "1"}, "--version selects from the prediction log"),
        ({"source": Path("scored.parquet"), "reference": "same-season"}, "is for windows of the log"),
        ({"version": "99"}, "has no version '99'"),
        ({"until": datetime(1999, 1, 1)}, "the prediction log is empty"),
    ],
)
def test_impossible_window_is_refused(settings: Settings, params: Params, query: dict[str, Any], message: str) -> None:
    shutil.copy(ROOT / paths.CONTRACT, paths.CONTRACT)
    with pytest.raises(ProjectError, match=message):
        monitoring.monitor_window(PROJECT, settings, params, **query)
    assert not Path("reports").exists()


def test_span_without_rows_names_the_span_of_the_log(
    settings: Settings, params: Params, table: pl.DataFrame, bundle_path: Path
) -> None:
    bundle = Bundle.open(bundle_path)
    write_log(settings.prediction_log, table.head(3), bundle, LoggedModel("7", bundle.digest), [START_US] * 3)
    with pytest.raises(ConfigError, match=r"no row of version 7 from the start to 1999-01-01 00:00; it spans 2024-"):
        monitoring.monitor_window(PROJECT, settings, params, until=datetime(1999, 1, 1))
