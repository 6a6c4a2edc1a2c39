"""Measures the variants of an experiment next to each other: champion, challenger, shadow, each with its model."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.monitoring.performance.intervals import Interval, compute_deciding_interval, wilson_interval
from flywheel_ml.monitoring.sources.log_window import Log, Span, cut
from flywheel_ml.monitoring.window import Window
from flywheel_ml.prediction_log.selection import HOUR_US
from flywheel_ml.prediction_log.values import parse_label, parse_output
from flywheel_ml.utils import config_model


class VariantQuality(config_model.StrictModel):
    """Rows that one model answered in one variant, their labels, and the deciding metric with its interval."""

    variant: str
    model_version: str
    rows: int
    labelled: int
    coverage: tuple[float, float, float]
    metric: tuple[float, float, float] | None


def measure_window(window: Window, task: Task, confidence: float) -> Iterator[VariantQuality]:
    """Measure the variants in which a window's own model answered."""
    version = ", ".join(window.versions) or "none"
    for variant, rows in window.variants.items():
        mine = window.labelled_variants == variant
        yield _build(variant, version, rows, window.truth[mine], window.output[mine], task, confidence)


def measure_others(log: Log, contract: Contract, digest: str, span: Span, confidence: float) -> list[VariantQuality]:
    """Measure what other models answered in the same span, shadows included.

    Rows are counted from profiles where there are some; only labelled rows are read.

    Args:
        log: the log.
        contract: classes of the target.
        digest: digest of the window's own model, which is left out, as are rows without a digest.
        span: the time span.
        confidence: confidence level of the intervals.
    """
    counted = {key: rows for key, rows in _count_answers(log, span).items() if key[2] != digest}
    found = []
    for (variant, version, other), rows in sorted(counted.items()):
        truth, output = [], []
        for row in log.reader.labelled(*span, version, other, variant):
            value = parse_label(row.label, contract)
            if row.prediction.degraded or row.prediction.model_digest is None or np.isnan(value):
                continue
            if (answer := parse_output(row.prediction, contract)) is not None:
                truth.append(value)
                output.append(answer)
        arrays = np.array(truth), np.array(output, dtype=np.float32).reshape(len(truth), len(contract.classes) or 3)
        found.append(_build(variant, version, max(rows, len(truth)), *arrays, contract.task, confidence))
    return found


def _count_answers(log: Log, span: Span) -> Counter[tuple[str, str, str]]:
    """Count what each model answered in each variant: (variant, version, digest) → rows; a fallback's do not count."""
    logged = log.reader.count_hours(*span)
    first, end = -(-span.since_us // HOUR_US), span.until_us // HOUR_US
    known = log.store.count_hours() if log.store else {}
    hours = {hour for hour, rows in known.items() if first <= hour < end and rows >= logged.get(hour, 0)}
    found: Counter[tuple[str, str, str]] = Counter()
    if log.store and hours:
        for hour, variant, model, rows in log.store.count_answers(min(hours), max(hours)):
            if hour in hours and model.digest is not None:
                found[variant, model.version, model.digest] += rows
    for part, is_profiled in cut(span, logged.keys() | hours, hours):
        for stats in [] if is_profiled else log.reader.compute_stats(*part):
            if stats.model_digest is not None:
                found[stats.variant, stats.model_version, stats.model_digest] += stats.rows - stats.degraded
    return +found


def _build(
    variant: str, version: str, rows: int, truth: np.ndarray, output: np.ndarray, task: Task, confidence: float
) -> VariantQuality:
    found: Interval | None = compute_deciding_interval(task, truth, output, confidence)
    return VariantQuality(
        variant=variant,
        model_version=version,
        rows=rows,
        labelled=len(truth),
        coverage=wilson_interval(len(truth), rows, confidence),
        metric=found,
    )
