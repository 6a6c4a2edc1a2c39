"""Renders a replay as a self-contained HTML page with one SVG plot."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.monitoring.replay import picture, summary
from flywheel_ml.monitoring.replay.result import Difference, Measured, PeriodResult, ReplayResult, Retrained
from flywheel_ml.utils import formatting
from flywheel_ml.utils.html import open_templates

TEMPLATE = "replay.html.jinja"
TONES = {
    "helped": "ok",
    "did not help": "drift",
    "made it worse": "degraded",
    "was never in service": "insufficient",
    "was not measured": "insufficient",
}
STEPS = {
    "batch": "batch scoring, by both models",
    "API": "requests to the API",
    "labels": "labels to the API",
    "monitor": "monitoring",
    "decide": "deciding",
    "retrain": "retraining and gates",
    "canary": "canary and promotion",
}


class Row(NamedTuple):
    """One period as a row of the table; a value comes with its interval."""

    label: str
    versions: str
    rows: tuple[str, str]
    frozen: tuple[str, str]
    live: tuple[str, str]
    difference: tuple[str, str]
    tone: str
    verdict: str
    finding: str
    events: tuple[tuple[str, bool], ...]
    seconds: str


class Cost(NamedTuple):
    """A step, its seconds, and their share of all."""

    name: str
    seconds: str
    share: float


def render_page(result: ReplayResult) -> str:
    """Render the page."""
    finding = summary.judge(result)
    return (
        open_templates(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            result=result,
            metric=formatting.METRIC_NAMES[result.metric],
            headline=summary.write_headline(result),
            sentences=list(summary.write_sentences(result)),
            finding=finding,
            tone=TONES[finding],
            tiles=list(_build_tiles(result)),
            style=picture.read_style(),
            plots=[
                (kind, picture.draw(result, width))
                for kind, width in (("desk", picture.WIDE), ("phone", picture.NARROW))
            ],
            rows=[_build_row(period, result) for period in result.periods],
            retrainings=[
                (period.label, period.retrained, _describe_outcome(period.retrained))
                for period in result.periods
                if period.retrained
            ],
            looks=[(period.label, one) for period in result.periods for one in period.canary],
            costs=list(_build_costs(result)),
            facts=list(_build_facts(result)),
            loss=result.difference.loss if result.difference else "loss",
        )
    )


def _build_tiles(result: ReplayResult) -> Iterator[tuple[str, str, str]]:
    found = result.difference
    if found is not None and found.low is not None and found.high is not None and found.frozen:
        change = summary.signed_percent(found.value / found.frozen)
        yield f"{found.loss}, live − frozen", change, "below zero is better"
    trained = [period.retrained for period in result.periods if period.retrained]
    refused = sum(one.role == "refused" for one in trained)
    yield "retrainings", f"{len(trained)}", f"{len(result.promoted)} promoted, {refused} refused"
    drifted = sum(bool(period.drifted) for period in result.periods)
    yield "periods with drift", f"{drifted} of {len(result.periods)}", "compared with the model’s test rows"
    if result.compared:
        yield (
            "API equals batch",
            formatting.percent(result.agreed / result.compared),
            f"of {result.compared:,} answers, bit for bit",
        )
    yield "the whole replay", f"{result.seconds:.0f} s", f"on {result.cores} core{'s' * (result.cores > 1)}"


def _build_row(period: PeriodResult, result: ReplayResult) -> Row:
    found = period.difference
    tone = "" if found is None or found.low is None or found.high is None else _tone(found)
    rejected = f"{period.rejected:,} rejected by the API: {period.rejection}" if period.rejected else ""
    return Row(
        label=period.label,
        versions=" → ".join(f"v{version}" for version in period.versions) or "–",
        rows=(f"{period.rows:,}", rejected),
        frozen=_show(period.frozen, result.metric),
        live=_show(period.live, result.metric) if found is not None else ("same model", ""),
        difference=_show_difference(found),
        tone=tone,
        verdict=period.verdict if period.rows else "no rows",
        finding=_list_drifted(period),
        events=tuple(summary.list_events(period)) or ((_explain_waiting(period), False),),
        seconds=f"{sum(period.seconds.values()):.0f} s",
    )


def _tone(found: Difference) -> str:
    assert found.low is not None
    assert found.high is not None
    return "better" if found.high < 0 else "worse" if found.low > 0 else ""


def _show(measured: Measured | None, metric: str) -> tuple[str, str]:
    if measured is None:
        return "–", "too few labels"
    value = formatting.metric_value(metric, measured.value)
    if measured.low is None or measured.high is None:
        return value, ""
    return value, f"{formatting.metric_value(metric, measured.low)} to {formatting.metric_value(metric, measured.high)}"


def _show_difference(found: Difference | None) -> tuple[str, str]:
    if found is None or not found.frozen:
        return "–", ""
    change = summary.signed_percent(found.value / found.frozen)
    if found.low is None or found.high is None:
        return change, ""
    low, high = (summary.signed_percent(end / found.frozen) for end in (found.low, found.high))
    return change, f"{low} to {high}"


def _list_drifted(period: PeriodResult) -> str:
    shown = ", ".join(period.drifted[: summary.MAX_NAMES])
    more = len(period.drifted) - summary.MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _describe_outcome(retrained: Retrained) -> str:
    gate, _, reason = retrained.refusal.partition(": ")
    return f"refused by the gate ‘{gate}’: {reason}" if reason else retrained.role


def _explain_waiting(period: PeriodResult) -> str:
    """Return why a finding led to no more than an alert, or why a retraining was not carried out."""
    if any(one.action == "retrain" for one in period.decided):
        return "retraining due; the replay ends"
    return next((f"alert: {one.reason}" for one in period.decided if one.action == "alert"), "–")


def _build_costs(result: ReplayResult) -> Iterator[Cost]:
    seconds = {"first": result.first.seconds, **summary.sum_seconds(result.periods)}
    names = {"first": "first training", **STEPS}
    known = sum(seconds.values())
    if (rest := result.seconds - known) > 0:
        seconds["rest"], names["rest"] = rest, "starting the server, reading the table, reports"
    total = max(result.seconds, known)
    for name, label in names.items():
        if seconds.get(name, 0.0) >= 0.05:
            yield Cost(label, f"{seconds[name]:.1f} s", seconds[name] / total)


def _build_facts(result: ReplayResult) -> Iterator[tuple[str, str]]:
    first = result.first
    yield "table", f"{result.name}, to predict ‘{result.target}’ ({result.task})"
    yield (
        "first model",
        (
            f"version {first.version}, {first.estimator.replace('_', ' ')}, {formatting.rows(first.rows)} before "
            f"{formatting.day(first.until)}"
        ),
    )
    yield "labels arrive", f"{result.label_delay} after the prediction"
    yield "through the API", formatting.rows(sum(period.api_rows for period in result.periods))
    yield "commit", result.commit[:12]
    yield "replayed", f"{formatting.minute(result.at)} UTC"
