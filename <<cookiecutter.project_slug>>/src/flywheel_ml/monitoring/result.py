"""The result of monitoring one window: verdict, evidence, their wording, JSON and exit status."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.core.parsing.rules import REQUIRED, add_tolerance, build_rules
from flywheel_ml.core.profile import PREDICTION
from flywheel_ml.monitoring.drift import Drift, detect_drift
from flywheel_ml.monitoring.performance.variants import VariantQuality
from flywheel_ml.monitoring.quality import Quality, assess
from flywheel_ml.monitoring.reference import Reference
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils import config_model, formatting
from flywheel_ml.utils.files import canonical_json

Verdict = Literal["ok", "insufficient data", "drift", "degraded"]
EXIT_STATUS: dict[Verdict, int] = {"ok": 0, "insufficient data": 3, "drift": 4, "degraded": 5}
"""Exit status of the command line; 1 and 2 are errors."""
BUCKETS = ((1, 72), (24, 120), (7 * 24, 120), (28 * 24, 10_000))
"""Hours of a bucket, and the most buckets to draw before the next size applies."""


class RuleViolation(config_model.StrictModel):
    """Rows of the window that break the contract."""

    column: str
    rule: str
    rows: int
    share: float


class Bucket(config_model.StrictModel):
    """Number of rows in one period."""

    start: datetime
    rows: int


class Volume(config_model.StrictModel):
    """How many rows came, and when; empty buckets without timestamps."""

    rows: int
    degraded: int
    first: datetime | None
    last: datetime | None
    rows_per_hour: float | None
    clock: str
    bucket_hours: int
    buckets: tuple[Bucket, ...]


class Model(config_model.StrictModel):
    """The model that the window was compared with."""

    name: str
    version: str
    estimator: str
    target: str
    digest: str
    reference_rows: int


class ReferenceRows(config_model.StrictModel):
    """The rows that the window was compared with."""

    name: str
    description: str
    rows: int


class Result(config_model.StrictModel):
    """Everything that monitoring found about one window."""

    format: Literal[1] = 1
    at: datetime
    verdict: Verdict
    headline: str
    sentences: tuple[str, ...]
    source: str
    versions: dict[str, int]
    model: Model
    reference: ReferenceRows
    volume: Volume
    violations: tuple[RuleViolation, ...]
    drift: Drift
    quality: Quality

    @property
    def exit_status(self) -> int:
        """0 ok, 3 insufficient data, 4 drift, 5 degraded."""
        return EXIT_STATUS[self.verdict]

    def to_json(self) -> str:
        """Serialize the result to canonical JSON."""
        return canonical_json(self.model_dump(mode="json"), indent=2) + "\n"


def evaluate_window(
    window: Window,
    bundle: Bundle,
    params: Params,
    at: datetime,
    reference: Reference | None = None,
    others: Sequence[VariantQuality] = (),
) -> Result:
    """Compare a window with its reference, and its quality with that of the test rows; decide the verdict.

    Args:
        window: the rows, counted in the bins of this bundle's reference.
        bundle: the model.
        params: thresholds of `monitor`, costs and slices of `evaluate`.
        at: current time, aware.
        reference: the rows to compare with, in the same bins; the test rows by default.
        others: what other models answered in the same span.
    """
    contract, reference = bundle.contract, reference or Reference.of_test_rows(bundle)
    # A later date is always outside the reference; its hour of day is counted and compared separately.
    dates = [column.name for column in contract.inputs if column.type == "datetime"]
    drift = detect_drift(reference.profile, window.profile, params.monitor, excluded=dates)
    quality = assess(window, bundle.manifest, params.monitor, params.evaluate, others)
    violations = tuple(_find_violations(window, bundle))
    verdict = _combine_verdicts(drift, quality)
    return Result(
        at=at.astimezone(UTC),
        verdict=verdict,
        headline=_write_headline(verdict, drift, quality, reference),
        sentences=tuple(_write_sentences(window, drift, quality, violations)),
        source=window.source,
        versions=dict(window.versions),
        model=Model(
            name=bundle.manifest.name,
            version=", ".join(window.versions) or "none",
            estimator=bundle.manifest.estimator,
            target=bundle.manifest.target,
            digest=bundle.digest,
            reference_rows=bundle.profile.rows,
        ),
        reference=ReferenceRows(name=reference.name, description=reference.description, rows=reference.profile.rows),
        volume=_summarize_volume(window),
        violations=violations,
        drift=drift,
        quality=quality,
    )


def _combine_verdicts(drift: Drift, quality: Quality) -> Verdict:
    """Return the worse verdict; too little data to compare is never ok."""
    if quality.verdict == "degraded":
        return "degraded"
    return drift.verdict


def _write_headline(verdict: Verdict, drift: Drift, quality: Quality, reference: Reference) -> str:
    if verdict == "degraded":
        judged, name = quality.measures[quality.judged], quality.judged
        assert judged.reference is not None
        now, tested = formatting.metric_value(name, judged.value), formatting.metric_value(name, judged.reference)
        return f"The model has become worse: {formatting.METRIC_NAMES[name]} {now}, {tested} when it was tested."
    if verdict == "insufficient data":
        return f"Too little data for a verdict: {drift.reason}."
    if verdict == "ok":
        if quality.verdict == "ok":
            return f"All is well: the data look like {reference.description}, and quality has not dropped."
        return f"The data look like {reference.description}. The model's quality is not known yet."
    changed = len(drift.drifted)
    if not changed:
        return f"The distribution of predictions has changed {reference.comparison}."
    inputs = sum(1 for name in {test.column for test in drift.comparisons} if name != PREDICTION)
    verb = "has" if changed == 1 else "have"
    predictions = ", and so have its predictions" if drift.prediction_drifted else ""
    return f"{changed} of {inputs} inputs {verb} drifted {reference.comparison}{predictions}."


def _write_sentences(
    window: Window, drift: Drift, quality: Quality, violations: tuple[RuleViolation, ...]
) -> Iterator[str]:
    if quality.verdict == "degraded" or (quality.verdict == "ok" and drift.verdict == "drift"):
        meaning = "" if quality.verdict == "degraded" else "; the drift has not cost quality so far"
        yield f"Quality: {quality.reason}{meaning}."
    elif quality.verdict == "ok":
        yield f"Quality: {quality.reason}, from {quality.labelled:,} labelled rows."
    else:
        yield f"Quality cannot be judged: {quality.reason}."
    if drift.verdict == "drift":
        names = [f"‘{name}’" for name in drift.drifted[:3]]
        if names:
            more = f" and {len(drift.drifted) - 3} more" if len(drift.drifted) > 3 else ""
            yield f"Changed most: {', '.join(names)}{more}."
    elif quality.verdict == "degraded":
        yield f"Drift: {drift.reason}."
    if drift.skipped:
        yield f"Too few values to compare: {', '.join(drift.skipped)}."
    if violations:
        worst = violations[0]
        more = f" and {len(violations) - 1} more" if len(violations) > 1 else ""
        yield f"{formatting.rows(worst.rows)} break the contract: ‘{worst.column}’ ({worst.rule}){more}."
    if window.degraded:
        yield f"A fallback, not the model, answered {window.degraded / window.rows:.1%} of the rows."
    yield from _describe_versions(window)
    yield from quality.cautions


def _describe_versions(window: Window) -> Iterator[str]:
    if window.rows_without_digest:
        rows = formatting.rows(window.rows_without_digest)
        yield f"{rows} were logged before model digests; they count as this model's by version number alone."
    if len(window.versions) > 1:
        yield f"The window mixes {len(window.versions)} model versions: {', '.join(window.versions)}."


def _find_violations(window: Window, bundle: Bundle) -> Iterator[RuleViolation]:
    found = []
    for column in bundle.contract.inputs:
        counts = window.profile.columns.get(column.name)
        if counts is None or not window.rows:
            continue
        if counts.missing and not column.nullable and column.name not in bundle.unused:
            found.append((column.name, REQUIRED, counts.missing))
        for rule in build_rules(column):
            if rule.kind == "categories" and counts.unseen > rule.tolerance * counts.present:
                found.append((column.name, add_tolerance(rule.message, rule.tolerance), counts.unseen))
            elif rule.kind == "range" and (outside := window.out_of_range.get(column.name)):
                found.append((column.name, rule.message, outside))
    for name, message, rows in sorted(found, key=lambda violation: -violation[2]):
        yield RuleViolation(column=name, rule=message, rows=rows, share=rows / window.rows)


def _summarize_volume(window: Window) -> Volume:
    hours = np.array(list(window.hours), dtype=np.int64)
    rows = np.array(list(window.hours.values()), dtype=np.int64)
    span = int(hours[-1] - hours[0]) + 1 if len(hours) else 0
    size = next((size for size, most in BUCKETS if span <= size * most), BUCKETS[-1][0])
    buckets: list[Bucket] = []
    if span:
        # Weeks begin on Monday; the first Monday after 1970-01-01 is 4 days later.
        shift = 4 * 24 if size % (7 * 24) == 0 else 0
        place = (hours - shift) // size
        for number in range(int(place[0]), int(place[-1]) + 1):
            start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=number * size + shift)
            buckets.append(Bucket(start=start.replace(tzinfo=None), rows=int(rows[place == number].sum())))
    return Volume(
        rows=window.rows,
        degraded=window.degraded,
        first=window.first,
        last=window.last,
        rows_per_hour=float(rows.sum()) / span if span else None,
        clock=window.clock,
        bucket_hours=size if buckets else 0,
        buckets=tuple(buckets),
    )
