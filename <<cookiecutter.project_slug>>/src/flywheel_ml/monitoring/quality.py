"""Measures a model on labelled rows, with confidence intervals, and compares it with its test metrics."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from flywheel_ml.core import metrics
from flywheel_ml.core.bundle import Manifest
from flywheel_ml.core.contract import Task
from flywheel_ml.core.params import EvaluateParams, MonitorParams
from flywheel_ml.core.profile import PREDICTION
from flywheel_ml.monitoring.performance.arrival import Arrival, assess_arrival
from flywheel_ml.monitoring.performance.estimation import Estimate, estimate_performance
from flywheel_ml.monitoring.performance.intervals import (
    MIN_ROWS_PER_CLASS,
    Interval,
    compute_deciding_interval,
    compute_intervals,
)
from flywheel_ml.monitoring.performance.variants import VariantQuality, measure_window
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils import config_model, formatting

DECIDING_METRIC: dict[Task, str] = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "mae"}
"""The metric that decides the verdict."""
LOW_COVERAGE = 0.5
MAX_SLICES = 40


class Measure(config_model.StrictModel):
    """One metric of the window; `low` and `high` are None if it has no interval, `reference` if none was stored."""

    value: float
    low: float | None = None
    high: float | None = None
    reference: float | None = None


class SliceQuality(config_model.StrictModel):
    """All metrics of the labelled rows that share one value of one column.

    `low` and `high` are the interval of the deciding metric, None if there are too few rows. `worse` is set if all of
    it is beyond the slice's own limit.
    """

    column: str
    value: str
    rows: int
    enough: bool
    worse: bool
    reference: float | None
    metrics: dict[str, float]
    low: float | None = None
    high: float | None = None


class Quality(config_model.StrictModel):
    """Quality of the labelled rows.

    `judged` names the metric that decides. `limit` is its reference minus the tolerated drop; for an error, plus the
    tolerated increase. The verdict is `degraded` if the whole interval is beyond the limit. `arrival`, `variants` and
    `estimate` never decide it.
    """

    verdict: Literal["ok", "degraded", "insufficient data"]
    reason: str
    confidence: float
    labelled: int
    coverage: float
    judged: str
    limit: float | None = None
    measures: dict[str, Measure]
    slices: tuple[SliceQuality, ...]
    curves: dict[str, metrics.Points]
    cautions: tuple[str, ...]
    arrival: Arrival
    variants: tuple[VariantQuality, ...]
    estimate: Estimate


def assess(
    window: Window,
    manifest: Manifest,
    monitor: MonitorParams,
    evaluate: EvaluateParams,
    others: Sequence[VariantQuality] = (),
) -> Quality:
    """Measure the labelled rows of a window and compare with the bundle's test metrics.

    Args:
        window: the monitored rows.
        manifest: the model's threshold and its test metrics.
        monitor: smallest number of labels, tolerated drop, confidence level.
        evaluate: costs and the smallest slice.
        others: what other models answered in the same span, to report next to the window's variants.
    """
    task, reference = manifest.task, manifest.metrics.get("test", {})
    found = metrics.compute_metrics(task, window.truth, window.output, _build_decision(manifest, evaluate))
    spread = compute_intervals(manifest, window.truth, window.output, monitor.confidence_level)
    measures = {
        name: Measure(
            value=value,
            low=spread[name].low if name in spread else None,
            high=spread[name].high if name in spread else None,
            reference=reference.get(name),
        )
        for name, value in found.items()
    }
    limit = _compute_limit(task, reference.get(DECIDING_METRIC[task]), monitor)
    verdict, reason = _decide(window.truth, task, measures, limit, monitor)
    arrival = assess_arrival(window, task, monitor)
    return Quality(
        verdict=verdict,
        reason=reason,
        confidence=monitor.confidence_level,
        labelled=len(window.truth),
        coverage=len(window.truth) / window.rows if window.rows else 0.0,
        judged=DECIDING_METRIC[task],
        limit=limit,
        measures=measures,
        slices=tuple(_assess_slices(window, manifest, monitor, evaluate)),
        curves=metrics.compute_curves(task, window.truth, window.output),
        cautions=(*_list_cautions(window, monitor), *filter(None, [arrival.caution])),
        arrival=arrival,
        variants=(*measure_window(window, task, monitor.confidence_level), *others),
        estimate=estimate_performance(window.profile.columns[PREDICTION], manifest, found),
    )


def is_error(measure: str) -> bool:
    """Whether a lower value of a metric is better."""
    return measure == "mae"


def _build_decision(manifest: Manifest, evaluate: EvaluateParams) -> metrics.DecisionRule | None:
    if manifest.threshold is None:
        return None
    return metrics.DecisionRule(manifest.threshold, evaluate.costs.false_positive, evaluate.costs.false_negative)


def _compute_limit(task: Task, reference: float | None, monitor: MonitorParams) -> float | None:
    if reference is None:
        return None
    return (
        reference * (1 + monitor.max_error_increase)
        if is_error(DECIDING_METRIC[task])
        else reference - monitor.max_quality_drop
    )


def _is_beyond(name: str, found: Interval | Measure, limit: float) -> bool:
    """Whether the whole interval of a metric is worse than its limit."""
    low, high = found.low, found.high
    assert low is not None
    assert high is not None
    return low > limit if is_error(name) else high < limit


def _decide(
    truth: np.ndarray, task: Task, measures: Mapping[str, Measure], limit: float | None, params: MonitorParams
) -> tuple[Literal["ok", "degraded", "insufficient data"], str]:
    if len(truth) < params.min_labels:
        shown = f"{len(truth):,} rows have a label" if len(truth) else "no row has a label"
        return "insufficient data", f"{shown}; {params.min_labels:,} are needed to judge"
    if task == "binary" and (rare := int(min(truth.sum(), (1 - truth).sum()))) < MIN_ROWS_PER_CLASS:
        return (
            "insufficient data",
            f"only {rare} labelled rows are of the rarer class; {MIN_ROWS_PER_CLASS} are needed to judge",
        )
    name = DECIDING_METRIC[task]
    shown, write = formatting.METRIC_NAMES[name], partial(formatting.metric_value, name)
    if limit is None:
        return "insufficient data", f"the bundle has no {shown} of its test rows to compare with"
    judged = measures[name]
    assert judged.low is not None
    assert judged.high is not None
    if _is_beyond(name, judged, limit):
        edge, side = ("at least", "above") if is_error(name) else ("at most", "below")
        end = judged.low if is_error(name) else judged.high
        return "degraded", f"{shown} {write(judged.value)} ({edge} {write(end)}) is {side} the limit of {write(limit)}"
    if is_error(name):
        return (
            "ok",
            f"{shown} {write(judged.value)} (down to {write(judged.low)}) is within the limit of {write(limit)}",
        )
    return "ok", f"{shown} {write(judged.value)} (up to {write(judged.high)}) reaches the limit of {write(limit)}"


def _list_cautions(window: Window, params: MonitorParams) -> list[str]:
    found = []
    labelled, answered = len(window.truth), window.rows - window.degraded
    if params.min_labels <= labelled < LOW_COVERAGE * answered:
        found.append(
            f"Only {labelled / answered:.0%} of the answered rows have a label. If labels arrive sooner for some kinds "
            "of rows than for others, these figures describe those kinds."
        )
    if 0 < labelled < 5 * params.min_labels:
        found.append("Few rows have a label, so the intervals are wide: a real loss of quality may not show yet.")
    return found


def _assess_slices(
    window: Window, manifest: Manifest, monitor: MonitorParams, evaluate: EvaluateParams
) -> Iterator[SliceQuality]:
    task, name = manifest.task, DECIDING_METRIC[manifest.task]
    tested = {(part.column, part.value): part.metrics.get(name) for part in manifest.slices}
    groups = dict(window.slices)
    if task == "multiclass":
        # As in evaluation: the accuracy among the rows of a class is its recall.
        groups[manifest.target] = np.array([str(label) for label in manifest.classes])[window.truth.astype(np.intp)]
    for column, values in groups.items():
        names, place, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
        members = np.split(np.argsort(place, kind="stable"), np.cumsum(counts)[:-1])
        for at in np.argsort(-counts, kind="stable")[:MAX_SLICES]:
            truth, output, value = window.truth[members[at]], window.output[members[at]], str(names[at])
            reference, enough = tested.get((column, value)), bool(counts[at] >= evaluate.min_slice_rows)
            limit = _compute_limit(task, reference, monitor)
            found = compute_deciding_interval(task, truth, output, monitor.confidence_level) if enough else None
            yield SliceQuality(
                column=column,
                value=value,
                rows=int(counts[at]),
                enough=enough,
                worse=bool(found and limit is not None and _is_beyond(name, found, limit)),
                reference=reference,
                metrics=metrics.compute_metrics(task, truth, output, _build_decision(manifest, evaluate)),
                low=found and found.low,
                high=found and found.high,
            )
