"""Measures the variants of an experiment next to each other: champion, challenger, shadow, each with its model."""

from collections.abc import Iterator

import numpy as np

from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.monitoring.performance.intervals import Interval, compute_deciding_interval, wilson_interval
from flywheel_ml.monitoring.window import Window, parse_label, parse_output
from flywheel_ml.prediction_log import Reader
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


def measure_others(
    reader: Reader,
    contract: Contract,
    digest: str,
    since_us: int,
    until_us: int | None,
    confidence: float,
) -> list[VariantQuality]:
    """Measure what other models answered in the same span, shadows included; reads their rows once.

    Args:
        reader: the log.
        contract: classes of the target.
        digest: digest of the window's own model, which is left out.
        since_us, until_us: microseconds since 1970, UTC.
        confidence: confidence level of the intervals.
    """
    found = []
    for stats in reader.compute_stats(since_us):
        if stats.model_digest in (None, digest):
            continue
        logged = reader.predictions(since_us, until_us, stats.model_version, stats.variant, stats.model_digest)
        rows, truth, output = 0, [], []
        for row in logged:
            if row.prediction.degraded:
                continue
            rows += 1
            value = parse_label(row.label, contract)
            if not np.isnan(value):
                truth.append(value)
                output.append(parse_output(row.prediction, contract))
        if rows:
            arrays = np.array(truth), np.array(output, dtype=np.float32).reshape(len(truth), -1)
            found.append(_build(stats.variant, stats.model_version, rows, *arrays, contract.task, confidence))
    return found


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
