"""Says in sentences what a replay showed; pure."""

from collections.abc import Iterator, Sequence
from typing import Literal

from flywheel_ml.monitoring.replay.result import Difference, PeriodResult, ReplayResult
from flywheel_ml.utils import formatting

Finding = Literal["helped", "did not help", "made it worse", "was never in service", "was not measured"]
MAX_NAMES = 3


def judge(result: ReplayResult) -> Finding:
    """Judge retraining by the interval of the difference in loss over all rows that a retrained model predicted."""
    found = result.difference
    if found is None or found.low is None or found.high is None:
        return "was not measured" if result.promoted else "was never in service"
    if found.high < 0:
        return "helped"
    return "made it worse" if found.low > 0 else "did not help"


def write_headline(result: ReplayResult) -> str:
    """Write the one sentence that matters."""
    finding, found = judge(result), result.difference
    if finding == "was not measured":
        return "A retrained version served, but too few labelled rows show what it changed."
    if finding == "was never in service" or found is None:
        return f"Retraining changed nothing: {_explain_frozen(result)}."
    size, months = _describe_relative(found), _count_periods(result)
    side = "below" if found.value < 0 else "above"
    fact = f"from {months} the live model’s {found.loss} was {size} {side} the frozen one’s"
    if finding == "helped":
        return f"Retraining helped: {fact}."
    if finding == "made it worse":
        return f"Retraining made the model worse: {fact}."
    return f"Retraining did not measurably help: {fact}, which may be chance."


def write_sentences(result: ReplayResult) -> Iterator[str]:
    """Write the evidence behind the headline, and what it cost."""
    found = result.difference
    if found is not None and found.low is not None and found.high is not None and found.frozen:
        level = f"{100 * result.confidence:.0f}%"
        yield (
            f"The {level} interval of the difference is {signed_percent(found.low / found.frozen)} to "
            f"{signed_percent(found.high / found.frozen)} of the frozen model’s {found.loss}, on the same "
            f"{formatting.rows(found.rows)}; below zero, retraining is better."
        )
    yield _describe_aging(result)
    yield _describe_work(result)
    if result.has_edits:
        yield f"Replayed was commit {result.commit[:8]}; uncommitted edits took no part."


def describe_period(found: PeriodResult, metric: str) -> str:
    """Describe a period in one line, for the terminal."""
    if not found.rows:
        return "no rows"
    parts = [f"{formatting.rows(found.rows)}, version {' and '.join(found.versions)}"]
    if found.live is not None:
        shown = formatting.metric_value(metric, found.live.value)
        frozen = formatting.metric_value(metric, found.frozen.value) if found.frozen and found.difference else ""
        parts.append(f"{formatting.METRIC_NAMES[metric]} {shown}" + (f" (frozen {frozen})" if frozen else ""))
    else:
        parts.append("no labels to measure it")
    parts.append(describe_finding(found))
    if action := describe_action(found):
        parts.append(action)
    return "; ".join(parts)


def describe_finding(found: PeriodResult) -> str:
    """Describe what monitoring found in a period."""
    if not found.drifted:
        return found.verdict
    shown = ", ".join(found.drifted[:MAX_NAMES])
    more = f" and {len(found.drifted) - MAX_NAMES} more" if len(found.drifted) > MAX_NAMES else ""
    return f"{found.verdict}: {shown}{more}"


def describe_action(found: PeriodResult) -> str:
    """Describe what was done about it; empty if nothing was."""
    parts = []
    if found.retrained is not None:
        one = found.retrained
        parts.append(f"retrained: version {one.version} is {one.role}" + (f" ({one.refusal})" if one.refusal else ""))
    if found.retraining_error:
        parts.append(f"failed: {found.retraining_error}")
    if found.canary:
        last = found.canary[-1]
        parts.append(f"canary of version {last.version}: {last.action}")
    if found.promoted:
        parts.append(f"version {found.promoted} became champion")
    return "; ".join(parts)


def list_events(found: PeriodResult) -> Iterator[tuple[str, bool]]:
    """List what was done in a period in a few words each, and whether it is bad news; details are elsewhere."""
    if found.canary:
        last = found.canary[-1]
        yield f"canary of v{last.version}: {last.action}", last.action in ("roll back", "expire")
    if found.promoted:
        yield f"v{found.promoted} became champion", False
    if found.retrained is not None:
        yield (
            (f"retrained: v{found.retrained.version} refused", True)
            if found.retrained.refusal
            else (f"retrained: v{found.retrained.version}", False)
        )
    if found.retraining_error:
        yield f"failed: {found.retraining_error}", True


def sum_seconds(periods: Sequence[PeriodResult]) -> dict[str, float]:
    """Add up the seconds of each step over all periods."""
    total: dict[str, float] = {}
    for period in periods:
        for name, seconds in period.seconds.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _explain_frozen(result: ReplayResult) -> str:
    tried = [period.retrained for period in result.periods if period.retrained]
    failed = [period.retraining_error for period in result.periods if period.retraining_error]
    if not tried and failed:
        many = "the retraining failed" if len(failed) == 1 else f"all {len(failed)} retrainings failed"
        return f"{many}, and the first model served throughout: {failed[0]}"
    if not tried:
        return "no finding led to a retraining, and the first model served throughout"
    refused = sum(one.role == "refused" for one in tried)
    many = "none of the retrained versions" if len(tried) > 1 else "the retrained version did not get"
    if refused == len(tried):
        return (
            f"all {len(tried)} retrained versions were refused, and the first model served throughout"
            if len(tried) > 1
            else "the one retrained version was refused, and the first model served throughout"
        )
    return f"{many} into service before the end" if len(tried) == 1 else f"{many} got into service before the end"


def _count_periods(result: ReplayResult) -> str:
    served = [period for period in result.periods if period.difference is not None]
    first, last = served[0].label, served[-1].label
    return first if first == last else f"{first} to {last}"


def _describe_relative(found: Difference) -> str:
    share = abs(found.value / found.frozen) if found.frozen else 0.0
    return formatting.percent(share) if share >= 0.0005 else "less than 0.1%"


def signed_percent(share: float) -> str:
    """Format a share as a percentage with its sign."""
    return f"{100 * share:+.1f}%".replace("-", "−")


def _describe_aging(result: ReplayResult) -> str:
    """Describe how the frozen model did over time."""
    known = [period for period in result.periods if period.frozen is not None]
    name = formatting.METRIC_NAMES[result.metric]
    if not known:
        return "No period had enough labels to measure quality."
    values = [(period.frozen.value, period.label) for period in known if period.frozen]
    low, high = min(values), max(values)
    tested = (
        ""
        if result.first.tested is None
        else f", {formatting.metric_value(result.metric, result.first.tested)} when tested"
    )
    return (
        f"The frozen model’s {name} was between {formatting.metric_value(result.metric, low[0])} ({low[1]}) and "
        f"{formatting.metric_value(result.metric, high[0])} ({high[1]}){tested}."
    )


def _describe_work(result: ReplayResult) -> str:
    trained = [period.retrained for period in result.periods if period.retrained]
    refused = sum(one.role == "refused" for one in trained)
    rows = sum(period.rows for period in result.periods)
    retraining = sum_seconds(result.periods).get("retrain", 0.0)
    each = f", {retraining / len(trained):.0f} seconds each" if trained else ""
    return (
        f"{len(result.periods)} periods, {formatting.rows(rows)}: {len(trained)} retrainings{each}, "
        f"{refused} refused, {len(result.promoted)} promoted. The replay took {result.seconds:.0f} seconds."
    )
