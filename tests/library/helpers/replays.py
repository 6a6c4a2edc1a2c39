"""Results of replays, without running one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from flywheel_ml.monitoring.replay.result import (
    CanaryEvent,
    Decided,
    Difference,
    FirstModel,
    Measured,
    PeriodResult,
    ReplayResult,
    Retrained,
)

SECONDS = {"batch": 1.5, "API": 2.0, "labels": 0.4, "monitor": 1.1, "decide": 0.1}


class Month(NamedTuple):
    """What a month is to show."""

    frozen: float = 0.68
    live: float | None = None
    version: str = "1"
    retrained: str = ""
    refusal: str = ""
    error: str = ""
    promoted: str = ""
    rows: int = 28_000
    drifted: tuple[str, ...] = ("temp", "dewp")


def make_result(months: Sequence[Month], difference: tuple[float, float, float] | None, **changes: Any) -> ReplayResult:
    """Make the result of a replay from July 2013 on; `difference` is the value and interval of the losses."""
    known: dict[str, Any] = {
        "at": datetime(2026, 11, 1, tzinfo=UTC),
        "name": "flights",
        "target": "late",
        "task": "binary",
        "metric": "roc_auc",
        "confidence": 0.95,
        "commit": "0123456789abcdef",
        "has_edits": False,
        "trained_on": ("Jan 2013", "Jun 2013"),
        "first": FirstModel(
            version="1",
            estimator="hist_gradient_boosting",
            first=datetime(2013, 1, 1),
            until=datetime(2013, 6, 23),
            rows=153_955,
            tested=0.697,
            seconds=31.0,
        ),
        "periods": tuple(_make_period(at, month) for at, month in enumerate(months)),
        "difference": difference and _make_difference(*difference),
        "compared": 36_000,
        "agreed": 36_000,
        "label_delay": "1 of 4 parts of a period",
        "seconds": 221.0,
        "cores": 2,
    }
    return ReplayResult(**{**known, **changes})


def _make_period(at: int, month: Month) -> PeriodResult:
    start, end = datetime(2013, 7 + at, 1), datetime(2013 + (at == 5), 8 + at if at < 5 else 1, 1)
    retrained = None
    if month.retrained:
        retrained = Retrained(
            version=month.retrained,
            role="refused" if month.refusal else "challenger",
            until=f"{start:%F}",
            rows=180_000,
            refusal=month.refusal,
            comparison="log loss 0.5 against 0.51 of the champion",
        )
    looks = [CanaryEvent(version=month.promoted, step="50%", action="promote", reason="it is worse by less than 0.01")]
    return PeriodResult(
        label=f"{start:%b %Y}",
        start=start,
        end=end,
        rows=month.rows,
        labelled=month.rows,
        api_rows=6000,
        rejected=0,
        versions=(month.version,),
        frozen=_measure(month.frozen) if month.rows else None,
        live=_measure(month.frozen if month.live is None else month.live) if month.rows else None,
        difference=None if month.live is None else _make_difference(-0.004, -0.006, -0.002),
        verdict="drift" if month.drifted else "ok",
        headline="2 of 15 inputs have drifted.",
        drifted=month.drifted,
        decided=tuple(Decided(finding="drift", action="retrain", reason="present") for _ in month.drifted[:1]),
        retrained=retrained,
        retraining_error=month.error,
        canary=tuple(looks if month.promoted else ()),
        promoted=month.promoted or None,
        seconds={**SECONDS, **({"retrain": 24.0} if month.retrained else {})},
    )


def _measure(value: float) -> Measured:
    return Measured(value=value, low=value - 0.008, high=value + 0.008)


def _make_difference(value: float, low: float, high: float) -> Difference:
    return Difference(rows=84_000, loss="log loss", frozen=0.5, value=value, low=low, high=high)
