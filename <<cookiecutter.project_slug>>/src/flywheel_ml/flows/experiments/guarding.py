"""Checks that an experiment is valid and harmless: errors, latency, and how rows and labels are divided."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from flywheel_ml.experiments import guards
from flywheel_ml.experiments.evidence import LATENCY_EDGES
from flywheel_ml.experiments.log_counts import CHAMPION
from flywheel_ml.flows.experiments.reading import PeriodEvidence, take_last
from flywheel_ml.flows.experiments.result import GuardResult
from flywheel_ml.utils.formatting import number, percent, rows

ALPHAS = {"errors": 0.003, "latency": 0.003, "sample ratio": 0.001, "labelled rows": 0.001}
"""Error probability of each guard over the whole experiment; those of single arms are divided among the arms."""
QUANTILE = 0.95
"""Of latencies, for people; the guard compares whole distributions."""


def guard_arm(evidence: Sequence[PeriodEvidence], name: str, arms: int) -> Iterator[GuardResult]:
    """Yield the guards of one arm: errors and latency."""
    pairs = [(one, one.counts[CHAMPION], one.counts[name]) for one in evidence if name in one.counts]
    shares = [_find_pair_share(one, name) for one, _, _ in pairs]
    logs = [
        guards.log_attribution(np.array((theirs.errors, ours.errors)), np.array((theirs.rows, ours.rows)), share)
        for (_, theirs, ours), share in zip(pairs, shares, strict=True)
        if share is not None and theirs.rows and ours.rows
    ]
    failed, total = sum(ours.errors for _, _, ours in pairs), sum(ours.rows for _, _, ours in pairs)
    theirs_failed, theirs_total = (sum(one) for one in zip(*((c.errors, c.rows) for _, c, _ in pairs), strict=True))
    detail = f"{failed:,} of its {rows(total)} failed, {theirs_failed:,} of the champion's {theirs_total:,}"
    yield _build("errors", logs, detail, ALPHAS["errors"] / arms)
    timed = [
        guards.log_latency(np.array((theirs.latencies, ours.latencies)), share)
        for (_, theirs, ours), share in zip(pairs, shares, strict=True)
        if share is not None and theirs.latencies and ours.latencies
    ]
    measured = [(theirs, ours) for _, theirs, ours in pairs if theirs.latencies and ours.latencies]
    detail = ""
    if timed:
        detail = _describe_latency(
            *(np.sum([one.latencies for one in side], axis=0) for side in zip(*measured, strict=True))
        )
    yield _build("latency", timed, detail, ALPHAS["latency"] / arms)


def guard_split(evidence: Sequence[PeriodEvidence]) -> Iterator[GuardResult]:
    """Yield the guards of the whole experiment: whether rows, and labelled rows, are divided by the shares."""
    split = [one for one in evidence if not one.period.is_shadow and min(one.period.shares) > 0]
    for name, count in (("sample ratio", _count_rows), ("labelled rows", _count_labelled)):
        counted = [(np.array(count(one)), one.period.shares) for one in split if sum(count(one))]
        logs = [guards.log_sample_ratio(found, shares) for found, shares in counted]
        details = [
            f"{', '.join(f'{number:,.0f}' for number in found)} rows of champion and challengers, "
            f"planned {', '.join(percent(share) for share in shares)}"
            for found, shares in counted
        ]
        worst = max(range(len(logs)), key=lambda at: float(logs[at]), default=None)
        yield _build(name, logs, "" if worst is None else details[worst], ALPHAS[name])


def _count_rows(one: PeriodEvidence) -> list[float]:
    return [float(one.counts[name].rows) for name in _list_names(one)]


def _count_labelled(one: PeriodEvidence) -> list[float]:
    return [float(take_last(one.sums[name]).rows) for name in _list_names(one)]


def _list_names(one: PeriodEvidence) -> list[str]:
    return [CHAMPION, *(arm.name for arm in one.period.arms)]


def _find_pair_share(one: PeriodEvidence, name: str) -> float | None:
    """Return the share of an arm among its rows and the champion's; None if the champion has none."""
    if one.period.is_shadow:
        return 0.5
    champion, *shares = one.period.shares
    share = next(found for arm, found in zip(one.period.arms, shares, strict=True) if arm.name == name)
    return share / (share + champion) if champion else None


def _describe_latency(champion: np.ndarray, challenger: np.ndarray) -> str:
    slow, usual = (_find_quantile(counts) for counts in (challenger, champion))
    return f"{percent(QUANTILE)} of its requests took at most {slow}, of the champion's {usual}"


def _find_quantile(counts: np.ndarray) -> str:
    """Return the edge of the latency bin that holds a quantile."""
    at = int(np.searchsorted(counts.cumsum(), QUANTILE * counts.sum()))
    return f"{number(1000 * LATENCY_EDGES[at])} ms" if at < len(LATENCY_EDGES) else f"over {LATENCY_EDGES[-1]:.0f} s"


def _build(name: str, logs: Sequence[np.ndarray], detail: str, alpha: float) -> GuardResult:
    evidence, threshold = float(guards.combine_strata(logs)), -math.log(alpha)
    return GuardResult(
        name=name,
        measured=bool(logs),
        tripped=evidence >= threshold,
        detail=detail if logs else "no rows of both",
        evidence=evidence,
        threshold=threshold,
    )
