"""The project's rules, dashboard and sinks work with a real server, Prometheus and Alertmanager."""

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from pydantic import SecretStr

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting import exposition
from flywheel_ml.monitoring.alerting.configured import build_sinks
from flywheel_ml.monitoring.alerting.delivery import RetryPolicy, deliver
from flywheel_ml.monitoring.alerting.outbox import Outbox
from flywheel_ml.monitoring.result import Result
from flywheel_ml.monitoring.run import monitor
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.testing.servers import ServingFolder
from library.helpers import prometheus
from library.helpers.project import ROOT
from library.helpers.servers import Server, wait_for
from library.helpers.sinks import Hook, make_alert, serve
from library.helpers.windows import write_scored_file

MISSING = prometheus.find_missing_program()
needs_prometheus = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is not installed")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, bundle_path: Path, params: Params) -> Result:
    """The result of a labelled window."""
    folder, bundle = tmp_path_factory.mktemp("monitoring"), Bundle.open(bundle_path)
    path = write_scored_file(table, bundle, folder / "scored.parquet")
    return monitor(from_file(path, bundle), bundle, params, folder / "out", datetime.now(UTC)).result


def list_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def list_queries() -> list[str]:
    """The queries of the dashboard, without its variables."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", "5m").replace("$job", "job") for query in queries]


def list_metrics(queries: list[str]) -> set[str]:
    """The names of the metrics in queries: words with a lower line that are neither labels nor functions."""
    text = "\n".join(re.sub(r'\{[^}]*\}|"[^"]*"|\[\w+\]', "", query) for query in queries)
    names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b(?! ?\()", text))
    return {name.removesuffix("_bucket") for name in names} - {"group_left"}


def test_every_metric_of_rules_and_dashboard_is_in_the_output_of_a_server(
    folder: ServingFolder, tmp_path: Path, result: Result
) -> None:
    folder.roll_out("1")
    exposition.write_result(folder.path, result)
    exposition.write_alerts(folder.path, Outbox(tmp_path / "outbox"), ["log"])
    with Server(tmp_path) as server, server.client() as client:
        shown = set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE))
    for queries in ([rule["expr"] for rule in list_rules()], list_queries()):
        metrics = list_metrics(queries)
        assert len(metrics) > 25
        assert metrics - shown == set()


def test_every_alert_and_panel_describes_itself() -> None:
    rules = list_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    documented = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        page, _, section = rule["annotations"]["runbook"].partition("#")
        titles = re.findall(r"^## (.*)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert section in {title.lower().replace(" ", "-") for title in titles}
        assert f"| `{rule['alert']}` |" in documented
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    for key in ("id", "title"):
        values = [panel[key] for panel in dashboard["panels"]]
        assert len(set(values)) == len(values)


@needs_prometheus
def test_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(list_queries())]
    path = tmp_path / "dashboard.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    result = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", "deploy/prometheus.yaml"),
        ("promtool", "test", "rules", "tests/alerts_test.yaml"),
        ("amtool", "check-config", "deploy/alertmanager.yaml"),
    ],
)
def test_configuration_is_valid_and_every_rule_fires_when_it_should(command: tuple[str, ...]) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_prometheus
def test_alerts_fire_and_resolve_through_prometheus_and_alertmanager(
    folder: ServingFolder, tmp_path: Path, result: Result
) -> None:
    ref = folder.roll_out("1")
    hook = Hook()

    def received(name: str, status: str) -> bool:
        return any(
            alert["labels"]["alertname"] == name and alert["status"] == status
            for body in hook.bodies
            for alert in body["alerts"]
        )

    quiet = result.model_copy(update={"drift": result.drift.model_copy(update={"comparisons": ()})})
    test = result.drift.comparisons[0].model_copy(update={"column": "month", "drifted": True})
    drifted = result.model_copy(update={"drift": result.drift.model_copy(update={"comparisons": (test,)})})
    settings = Settings(_env_file=None)
    with serve(hook), Server(tmp_path) as server, prometheus.run_stack(tmp_path / "stack", server, hook.url) as stack:
        exposition.write_result(folder.path, quiet)
        wait_for(lambda: bool(stack.query("monitoring_verdict")), 20)
        assert not hook.bodies
        # Conditions begin: the data drift, and the server loses its model.
        exposition.write_result(folder.path, drifted)
        folder.point(None)
        wait_for(lambda: received("DataDrift", "firing") and received("NoModel", "firing"), 30)
        # Monitoring notifies Alertmanager by itself as well.
        sink = settings.model_copy(update={"alert_alertmanager": SecretStr(stack.alertmanager)})
        sinks = [one for one in build_sinks(sink, tmp_path / "log") if one.name == "alertmanager"]
        outbox = Outbox(tmp_path / "outbox")
        for alerts, status in (([make_alert(evidence="é “x”\n<y>")], "firing"), ([], "resolved")):
            outbox.record(alerts, "live", "d" * 64, lambda _: True, ["alertmanager"], datetime.now(UTC))
            assert not deliver(outbox, sinks, RetryPolicy(5, 0))[0].fault
            wait_for(lambda status=status: received("Drift", status), 20)  # type: ignore[misc]
        # They end.
        exposition.write_result(folder.path, quiet)
        folder.point(ref)
        wait_for(lambda: received("DataDrift", "resolved") and received("NoModel", "resolved"), 30)
    firing = next(
        alert for body in hook.bodies for alert in body["alerts"] if alert["labels"]["alertname"] == "DataDrift"
    )
    assert firing["annotations"]["runbook"] == "docs/runbook.md#drift"
