"""Monitoring's findings as Prometheus metrics, in files that servers add to their own `/metrics`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flywheel_ml.core.serving_folder import ALERT_METRICS, MONITORING_METRICS
from flywheel_ml.monitoring.alerting.outbox import Outbox
from flywheel_ml.monitoring.alerting.rules import SEVERITIES
from flywheel_ml.monitoring.quality import Quality
from flywheel_ml.monitoring.result import EXIT_STATUS, Result
from flywheel_ml.utils.files import replacing

MAX_COLUMNS = 50
"""Columns with a series of their own, those with the largest effect first."""
MEASURES = {
    "monitoring_quality": ("value", "Quality on the labelled rows of the last window."),
    "monitoring_quality_low": ("low", "Lower end of the confidence interval."),
    "monitoring_quality_high": ("high", "Upper end of the confidence interval."),
    "monitoring_quality_reference": ("reference", "Quality on the test rows."),
}

Samples = Iterable[tuple[dict[str, str], float]]


def write_result(folder: Path, result: Result) -> None:
    """Replace the metrics of the last monitored window, atomically."""
    _write(folder / MONITORING_METRICS, "".join(_format_result(result)))


def write_alerts(folder: Path, outbox: Outbox, sinks: Sequence[str]) -> None:
    """Replace the metrics of the alerts: how many are open, and how many each configured sink still has to accept."""
    found, waiting = outbox.list_open(), outbox.count_waiting()
    by_severity: list[tuple[dict[str, str], float]] = [
        ({"severity": name}, float(sum(one.alert.severity == name for one in found))) for name in SEVERITIES
    ]
    texts = (
        _format("monitoring_alerts_open", "Conditions that last, by severity.", by_severity),
        _format(
            "monitoring_alerts_undelivered",
            "Alerts that a sink has not accepted yet.",
            [({"sink": name}, float(waiting.get(name, 0))) for name in sinks],
        ),
    )
    _write(folder / ALERT_METRICS, "".join(texts))


def _format_result(result: Result) -> Iterator[str]:
    drift, quality, volume = result.drift, result.quality, result.volume
    model = {"model": result.model.name, "version": result.model.version, "digest": result.model.digest}
    yield _format("monitoring_info", "The model that was monitored.", [(model, 1.0)])
    yield _format("monitoring_last_run_timestamp_seconds", "Time of the last run.", [({}, result.at.timestamp())])
    verdicts = [({"verdict": name.replace(" ", "_")}, float(name == result.verdict)) for name in EXIT_STATUS]
    yield _format("monitoring_verdict", "1 for the verdict of the last window.", verdicts)
    yield _format("monitoring_window_rows", "Rows of the last window.", [({}, float(volume.rows))])
    degraded = volume.degraded / volume.rows if volume.rows else 0.0
    yield _format("monitoring_degraded_ratio", "Share of rows that a fallback answered.", [({}, degraded)])
    violations = max((one.share for one in result.violations), default=0.0)
    yield _format(
        "monitoring_contract_violation_ratio", "Largest share of rows that break one rule.", [({}, violations)]
    )
    effects: dict[str, float] = {}
    for test in drift.comparisons:
        effects[test.column] = max(test.effect, effects.get(test.column, 0.0))
    largest = sorted(effects.items(), key=lambda item: -item[1])[:MAX_COLUMNS]
    yield _format(
        "monitoring_drift_effect",
        "Largest difference of a column from its reference, from 0 to 1.",
        [({"column": name}, effect) for name, effect in largest],
    )
    count = len(drift.drifted) + drift.prediction_drifted
    yield _format("monitoring_drifted_columns", "Drifted columns, the prediction included.", [({}, float(count))])
    yield _format("monitoring_labelled_rows", "Labelled rows of the last window.", [({}, float(quality.labelled))])
    yield _format("monitoring_label_coverage_ratio", "Share of rows with a label.", [({}, quality.coverage)])
    yield from _format_quality(quality)


def _format_quality(quality: Quality) -> Iterator[str]:
    for name, (attribute, text) in MEASURES.items():
        values = {metric: getattr(measure, attribute) for metric, measure in quality.measures.items()}
        yield _format(
            name, text, [({"metric": metric}, value) for metric, value in values.items() if value is not None]
        )
    limit = [] if quality.limit is None else [({"metric": quality.judged}, quality.limit)]
    yield _format("monitoring_quality_limit", "Value beyond which the model counts as degraded.", limit)


def _format(name: str, text: str, samples: Samples) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{pairs}}} {value!r}" if pairs else f"{name} {value!r}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
