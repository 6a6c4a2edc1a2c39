"""Rules find what is wrong with a window; the same condition has the same fingerprint in every run."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import alerts
from flywheel_ml.monitoring.alerting.rules import MAX_TEXT, build_alerts, can_end
from flywheel_ml.monitoring.result import Result
from flywheel_ml.monitoring.run import monitor
from flywheel_ml.monitoring.sources.scored_file import from_file
from library.helpers.sinks import make_alert
from library.helpers.windows import write_scored_file


def judge(frame: pl.DataFrame, bundle: Bundle, params: Params, folder: Path) -> Result:
    path = write_scored_file(frame, bundle, folder / "scored.parquet")
    return monitor(from_file(path, bundle), bundle, params, folder / "out").result


@pytest.fixture
def drifted(tmp_path: Path, moved: pl.DataFrame, bundle: Bundle, params: Params) -> Result:
    """The result of an unlabelled window whose data moved."""
    return judge(moved.drop(bundle.contract.target.name), bundle, params, tmp_path)


def test_drifted_window_raises_a_warning_with_first_steps(drifted: Result) -> None:
    raised = build_alerts(drifted, alerts.STANDARD_RULES)
    warning = next(alert for alert in raised if alert.what == "the data have drifted")
    assert warning.severity == "warning"
    assert warning.evidence.startswith("changed: ")
    assert warning.first_steps
    assert warning.runbook == "docs/runbook.md#drift"
    assert (warning.rule, warning.digest) == ("drift", drifted.model.digest)


def test_window_without_findings_raises_no_alert(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    assert build_alerts(judge(alike, bundle, params, tmp_path), alerts.STANDARD_RULES) == ()


def test_degraded_model_raises_a_critical_alert_first(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    wrong = alike.with_columns(~pl.col(bundle.contract.target.name))
    assert build_alerts(judge(wrong, bundle, params, tmp_path), alerts.STANDARD_RULES)[0].severity == "critical"


def test_long_evidence_of_a_custom_rule_is_cut(drifted: Result) -> None:
    rule: alerts.Rule = lambda _: [alerts.Finding("info", "long", "x" * 100_000, (), "drift")]  # noqa: E731
    (alert,) = build_alerts(drifted, (rule,))
    assert len(alert.evidence) == MAX_TEXT
    assert alert.rule == "long"


@pytest.mark.parametrize(
    "changes", [{"rule": "other"}, {"column": "x"}, {"digest": "e" * 64}, {"model_name": "b"}, {"source": "file"}]
)
def test_fingerprint_identifies_rule_model_column_and_source(changes: dict[str, Any]) -> None:
    assert make_alert(**changes).fingerprint != make_alert().fingerprint


def test_fingerprint_ignores_evidence_and_time() -> None:
    later = make_alert().at.replace(hour=20)
    assert make_alert(evidence="other figures", at=later, model="small 3, 7").fingerprint == make_alert().fingerprint


def test_window_with_too_little_data_ends_no_condition(drifted: Result) -> None:
    assert drifted.quality.verdict == "insufficient data"
    assert can_end(drifted, "drift")
    assert not can_end(drifted, "degraded-quality")
    empty = drifted.model_copy(update={"verdict": "insufficient data"})
    assert not can_end(empty, "drift")
    assert not can_end(empty, "a rule of the project")
    assert can_end(empty, "insufficient-data")
