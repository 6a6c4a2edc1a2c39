"""How good the model was on the rows whose outcome is known, with confidence intervals, beside its test."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from .. import metrics, strict
from ..bundle import Manifest
from ..params import EvaluateParams, MonitorParams
from .window import Window

JUDGED = "roc_auc"
MIN_OF_EACH = 10
"""Rows of the rarer class without which the interval of the ROC AUC means nothing."""
LOW_COVERAGE = 0.5
MAX_SLICES = 40


class Interval(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


class Measure(strict.Strict):
    """One measure of the window; the interval is absent where none is defined, the reference where none was stored."""

    value: float
    low: float | None = None
    high: float | None = None
    reference: float | None = None


class SliceQuality(strict.Strict):
    """ROC AUC, and all measures, of the labelled rows that share one value of one column.

    `worse` when the whole interval lies below the slice's own reference less the tolerated drop.
    """

    column: str
    value: str
    rows: int
    enough: bool
    worse: bool
    reference: float | None
    metrics: dict[str, float]


class Quality(strict.Strict):
    """Quality of the labelled rows.

    `limit` is the reference ROC AUC less the tolerated drop. The verdict is `degraded` when the whole interval
    of the window's ROC AUC lies below it.
    """

    verdict: Literal["ok", "degraded", "insufficient data"]
    reason: str
    confidence: float
    labelled: int
    coverage: float
    limit: float | None = None
    measures: dict[str, Measure]
    slices: tuple[SliceQuality, ...]
    curves: dict[str, metrics.Points]
    cautions: tuple[str, ...]


def assess(window: Window, manifest: Manifest, monitor: MonitorParams, evaluate: EvaluateParams) -> Quality:
    """Measure the labelled rows of a window against what the bundle achieved on its test rows.

    Args:
        window: the monitored rows.
        manifest: the model's threshold and its test metrics.
        monitor: smallest number of labels, tolerated drop, confidence.
        evaluate: costs and the smallest slice.
    """
    labels, scores, reference = window.labels, window.scores, manifest.metrics.get("test", {})
    found = metrics.binary(labels, scores, manifest.threshold, **evaluate.costs.model_dump())
    spread = intervals(labels, scores, manifest.threshold, monitor.confidence)
    measures = {
        name: Measure(
            value=value,
            low=spread[name].low if name in spread else None,
            high=spread[name].high if name in spread else None,
            reference=reference.get(name),
        )
        for name, value in found.items()
    }
    limit = reference[JUDGED] - monitor.roc_auc_drop if JUDGED in reference else None
    verdict, reason = _verdict(labels, measures, limit, monitor)
    return Quality(
        verdict=verdict,
        reason=reason,
        confidence=monitor.confidence,
        labelled=len(labels),
        coverage=len(labels) / window.rows if window.rows else 0.0,
        limit=limit,
        measures=measures,
        slices=tuple(_slices(window, manifest, monitor, evaluate)),
        curves=metrics.curves(labels, scores),
        cautions=tuple(_cautions(window, monitor)),
    )


def intervals(labels: np.ndarray, scores: np.ndarray, threshold: float, confidence: float) -> dict[str, Interval]:
    """Confidence intervals in closed form, so they cost one pass and need no seed.

    ROC AUC after DeLong et al. 1988, "Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves"; shares after Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference"; Brier score and log loss, which are means over rows, by the central limit theorem.
    """
    if len(labels) < 2:
        return {}
    counts = metrics.confusion(labels, scores, threshold)
    hits, positives, called = counts.true_positive, int(labels.sum()), counts.true_positive + counts.false_positive
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    truth = labels.astype(np.float64)
    likely = np.clip(np.where(labels, scores, 1 - scores.astype(np.float64)), np.finfo(np.float64).eps, None)
    found = {
        "prevalence": wilson(positives, len(labels), z),
        "accuracy": wilson(hits + counts.true_negative, len(labels), z),
        "brier": _mean((scores.astype(np.float64) - truth) ** 2, z),
        "log_loss": _mean(-np.log(likely), z),
    }
    if called:
        found["precision"] = wilson(hits, called, z)
    if positives:
        found["recall"] = wilson(hits, positives, z)
    if min(positives, len(labels) - positives) >= MIN_OF_EACH:
        found[JUDGED] = delong(labels, scores, z)
    return found


def delong(labels: np.ndarray, scores: np.ndarray, z: float) -> Interval:
    """ROC AUC ± z standard errors, cut off at 0 and 1, by the midranks of Sun & Xu 2014 in O(n log n)."""
    positive, negative = scores[labels], scores[~labels]
    ranks = stats.rankdata(np.concatenate((positive, negative)).astype(np.float64))
    above = (ranks[: len(positive)] - stats.rankdata(positive)) / len(negative)
    below = 1 - (ranks[len(positive) :] - stats.rankdata(negative)) / len(positive)
    error = float(np.sqrt(above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)))
    area = float(above.mean())
    return Interval(area, max(0.0, area - z * error), min(1.0, area + z * error))


def wilson(hits: int, rows: int, z: float) -> Interval:
    """A share and its score interval."""
    share = hits / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return Interval(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def _mean(values: np.ndarray, z: float) -> Interval:
    mean, half = float(values.mean()), z * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return Interval(mean, max(0.0, mean - half), mean + half)


def _verdict(
    labels: np.ndarray, measures: Mapping[str, Measure], limit: float | None, params: MonitorParams
) -> tuple[Literal["ok", "degraded", "insufficient data"], str]:
    rare = int(min(labels.sum(), (~labels).sum()))
    if len(labels) < params.min_labels:
        shown = f"{len(labels):,} rows have a label" if len(labels) else "no row has a label"
        return "insufficient data", f"{shown}; {params.min_labels:,} are needed to judge"
    if rare < MIN_OF_EACH:
        return (
            "insufficient data",
            f"only {rare} labelled rows are of the rarer class; {MIN_OF_EACH} are needed to judge",
        )
    if limit is None:
        return "insufficient data", "the bundle stores no ROC AUC of its test rows to compare with"
    judged = measures[JUDGED]
    assert judged.high is not None
    if judged.high < limit:
        return "degraded", f"ROC AUC {judged.value:.3f} (at most {judged.high:.3f}) is below the limit of {limit:.3f}"
    return "ok", f"ROC AUC {judged.value:.3f} (up to {judged.high:.3f}) reaches the limit of {limit:.3f}"


def _cautions(window: Window, params: MonitorParams) -> list[str]:
    found = []
    labelled, answered = len(window.labels), window.rows - window.degraded
    if params.min_labels <= labelled < LOW_COVERAGE * answered:
        found.append(
            f"Only {labelled / answered:.0%} of the answered rows have a label. If labels arrive sooner for some kinds "
            "of rows than for others, these figures describe those kinds."
        )
    if 0 < labelled < 5 * params.min_labels:
        found.append("Few rows have a label, so the intervals are wide: a real loss of quality may not show yet.")
    return found


def _slices(
    window: Window, manifest: Manifest, monitor: MonitorParams, evaluate: EvaluateParams
) -> Iterator[SliceQuality]:
    tested = {(part.column, part.value): part.metrics.get(JUDGED) for part in manifest.slices}
    for column, values in window.slices.items():
        names, place, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
        members = np.split(np.argsort(place, kind="stable"), np.cumsum(counts)[:-1])
        for at in np.argsort(-counts, kind="stable")[:MAX_SLICES]:
            labels, scores, value = window.labels[members[at]], window.scores[members[at]], str(names[at])
            reference, enough = tested.get((column, value)), bool(counts[at] >= evaluate.min_slice_rows)
            area = intervals(labels, scores, manifest.threshold, monitor.confidence).get(JUDGED)
            yield SliceQuality(
                column=column,
                value=value,
                rows=int(counts[at]),
                enough=enough,
                worse=bool(enough and area and reference is not None and area.high < reference - monitor.roc_auc_drop),
                reference=reference,
                metrics=metrics.binary(labels, scores, manifest.threshold, **evaluate.costs.model_dump()),
            )
