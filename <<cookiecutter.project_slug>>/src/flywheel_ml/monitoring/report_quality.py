"""Rows of the report's tables about quality: metrics, slices, variants, estimates, and the arrival of labels."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from flywheel_ml.monitoring.quality import Quality, SliceQuality
from flywheel_ml.utils import formatting

MAX_SLICE_ROWS = 12


class MetricRow(NamedTuple):
    """One metric as a row of the table."""

    name: str
    value: str
    interval: str
    reference: str
    change: str


class SliceRow(NamedTuple):
    """One slice as a row of the table."""

    value: str
    rows: str
    enough: bool
    area: str
    interval: str
    reference: str
    change: str
    worse: bool


class VariantRow(NamedTuple):
    """One variant as a row of the table."""

    variant: str
    version: str
    rows: str
    coverage: str
    metric: str
    interval: str


class EstimateRow(NamedTuple):
    """One estimated metric as a row of the table."""

    name: str
    estimated: str
    observed: str
    reference: str


def title_of_metric(measure: str) -> str:
    """Return the display name of a metric with a capital."""
    name = formatting.METRIC_NAMES[measure]
    return name[0].upper() + name[1:]


def build_metric_rows(quality: Quality) -> Iterator[MetricRow]:
    """Build the rows of all metrics of the labelled rows."""
    for name, shown in formatting.METRIC_NAMES.items():
        if name in quality.measures:
            found = quality.measures[name]
            reference = found.reference
            yield MetricRow(
                name=shown,
                value=formatting.metric_value(name, found.value),
                interval=_format_interval(name, found.low, found.high),
                reference=_format_value(name, reference),
                change=formatting.metric_change(name, reference, found.value) if reference is not None else "–",
            )


def build_slice_tables(found: tuple[SliceQuality, ...], judged: str) -> list[dict[str, Any]]:
    """Build one table for each column by whose values quality is reported."""
    tables: dict[str, list[SliceRow]] = {}
    for part in found:
        area, before = part.metrics.get(judged), part.reference
        tables.setdefault(part.column, []).append(
            SliceRow(
                value=part.value,
                rows=f"{part.rows:,}",
                enough=part.enough,
                area=_format_value(judged, area),
                interval=_format_interval(judged, part.low, part.high),
                reference=_format_value(judged, before),
                change="–" if area is None or before is None else formatting.metric_change(judged, before, area),
                worse=part.worse,
            )
        )
    return [
        {"column": column, "rows": rows[:MAX_SLICE_ROWS], "more": max(0, len(rows) - MAX_SLICE_ROWS)}
        for column, rows in tables.items()
    ]


def build_variant_rows(quality: Quality) -> Iterator[VariantRow]:
    """Build the rows of the variants, those of the window's own model first."""
    for one in quality.variants:
        share, low, high = one.coverage
        yield VariantRow(
            variant=one.variant,
            version=one.model_version,
            rows=f"{one.rows:,}",
            coverage=f"{formatting.percent(share)} ({formatting.percent(low)} – {formatting.percent(high)})",
            metric=_format_value(quality.judged, one.metric and one.metric[0]),
            interval=_format_interval(quality.judged, *(one.metric[1:] if one.metric else (None, None))),
        )


def build_estimate_rows(quality: Quality) -> Iterator[EstimateRow]:
    """Build the rows of the metrics that were estimated without labels."""
    for name, shown in formatting.METRIC_NAMES.items():
        if name in quality.estimate.metrics:
            found = quality.estimate.metrics[name]
            values = (found.value, found.observed, found.reference)
            yield EstimateRow(shown, *(_format_value(name, value) for value in values))


def describe_arrival(quality: Quality) -> Iterator[str]:
    """Yield sentences about the share of labelled rows, and about the delay of their labels."""
    arrival = quality.arrival
    if not arrival.labelled:
        return
    yield (
        f"{formatting.percent(arrival.coverage)} of {formatting.rows(arrival.answered)} have a label "
        f"({quality.confidence:.0%} interval {formatting.percent(arrival.low)} – {formatting.percent(arrival.high)})."
    )
    if arrival.timed:
        half, most, last = (format_hours(arrival.delays[name]) for name in ("50%", "90%", "100%"))
        yield f"Labels arrive {half} after the prediction in the median; 90% within {most}, the last after {last}."


def format_hours(hours: float) -> str:
    """Format a duration in its natural unit."""
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:.3g} {unit}"
    return f"{max(0.0, hours * 3600):.3g} seconds"


def _format_value(name: str, value: float | None) -> str:
    return "–" if value is None else formatting.metric_value(name, value)


def _format_interval(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{formatting.metric_value(name, low)} – {formatting.metric_value(name, high)}"
