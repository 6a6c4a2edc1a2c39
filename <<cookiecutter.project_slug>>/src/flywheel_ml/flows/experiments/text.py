"""Writes an experiment's report as text: Markdown, and the cells of tables."""

from collections.abc import Iterator
from typing import NamedTuple

from flywheel_ml.core.business_metrics import MODEL_LOSS
from flywheel_ml.flows.experiments.result import ArmResult, Difference, ExperimentReport
from flywheel_ml.utils.formatting import number, percent, span

LOSS_NAMES = {"log": "log loss", "zero_one": "share of wrong answers", "squared": "squared error"}
UNKNOWN = "–"


class ArmRow(NamedTuple):
    """One arm as a row of a table."""

    version: str
    share: str
    rows: str
    errors: str
    labelled: str
    mean: str
    difference: str
    interval: str
    relative: str
    verdict: str


def name_metric(found: ExperimentReport) -> str:
    """Return the display name of the metric."""
    return LOSS_NAMES[found.loss] if found.metric == MODEL_LOSS and found.loss else found.metric


def summarise(found: ExperimentReport) -> str:
    """Return the result in one sentence."""
    by_verdict = {
        verdict: [arm.version for arm in found.arms if arm.verdict == verdict] for verdict in ("better", "worse")
    }
    parts = [
        f"version{'s' * (len(versions) > 1)} {', '.join(versions)} {'are' if len(versions) > 1 else 'is'} {verdict}"
        for verdict, versions in by_verdict.items()
        if versions
    ]
    if parts:
        open_arms = [arm.version for arm in found.arms if arm.verdict not in by_verdict]
        rest = f"; nothing can be concluded about version {', '.join(open_arms)}" if open_arms else ""
        text = f"{' and '.join(parts)} than the champion{rest}"
        return text[0].upper() + text[1:]
    if any(arm.verdict == "not valid" for arm in found.arms):
        return "The comparison is not valid"
    return "Nothing can be concluded yet"


def build_rows(found: ExperimentReport) -> Iterator[ArmRow]:
    """Build the champion's row, then those of the arms."""
    shares = [arm.share for arm in found.arms if arm.share is not None]
    means = [arm.champion_mean for arm in found.arms if arm.champion_mean is not None]
    yield ArmRow(
        f"{found.champion}, champion",
        percent(max(0.0, 1 - sum(shares))),
        f"{found.champion_rows:,}",
        f"{found.champion_errors:,}",
        f"{found.champion_labelled:,}",
        number(means[0]) if means else UNKNOWN,
        *("", "", "", ""),
    )
    for arm in found.arms:
        yield ArmRow(
            arm.version,
            "shadow" if arm.share is None else percent(arm.share),
            f"{arm.rows:,}",
            f"{arm.errors:,}",
            f"{arm.labelled:,}",
            UNKNOWN if arm.mean is None else number(arm.mean),
            signed(arm.difference.estimate),
            format_interval(arm.difference),
            format_relative(arm),
            arm.verdict,
        )


def signed(value: float | None) -> str:
    """Format a difference with its sign."""
    return UNKNOWN if value is None else f"{'+' if value > 0 else ''}{number(value)}"


def format_interval(difference: Difference) -> str:
    """Format the bounds of a difference."""
    return UNKNOWN if difference.low is None else f"{signed(difference.low)} to {signed(difference.high)}"


def format_relative(arm: ArmResult) -> str:
    """Format a difference as a share of the champion's mean."""
    if arm.difference.estimate is None or not arm.champion_mean:
        return UNKNOWN
    relative = arm.difference.estimate / abs(arm.champion_mean)
    return f"{'+' if relative > 0 else '−' if relative < 0 else '±'}{abs(relative):.1%}"


def describe_method(found: ExperimentReport) -> str:
    """State what the intervals mean, and how α is divided."""
    several = (
        f", divided equally among {len(found.arms)} versions ({found.arm_alpha:.3g} each)"
        if len(found.arms) > 1
        else ""
    )
    planned = (
        ""
        if found.effect is None
        else (
            f" They are narrowest for a difference of {number(found.effect)}"
            + ("." if found.effect_is_given else ", a tenth of the champion's standard deviation; EFFECT= sets it.")
        )
    )
    return (
        f"Intervals hold at all looks together, however often you look: α is {found.alpha:g}{several}. "
        f"Guards have an α of 0.008 of their own.{planned}"
    )


def describe_slices(found: ExperimentReport) -> str:
    """State how slices are corrected for their number."""
    count = sum(len(arm.slices) for arm in found.arms)
    if not count or found.slice_alpha is None:
        return ""
    return (
        f"Many slices are compared, so each interval is wider: α is {found.slice_alpha:.2g} for each. With this "
        "correction, any of them excludes 0 by chance in at most 5% of experiments. A slice whose interval includes 0 "
        "is not shown to be equal."
    )


def render_markdown(found: ExperimentReport) -> str:
    """Render the report as Markdown."""
    state = "running" if found.is_running else "ended"
    lines = [
        f"# Experiment of {found.name}: {name_metric(found)}",
        "",
        f"**{summarise(found)}.** {found.better.capitalize()} is better. "
        f"{span(found.since, found.until)} UTC, {state}.",
        "",
        "| version | share | rows | errors | with a value | mean | difference | interval | relative | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *(f"| {' | '.join(row)} |" for row in build_rows(found)),
        "",
        *(
            f"- **Version {arm.version}: {arm.verdict}.** {arm.reason[0].upper()}{arm.reason[1:]}."
            for arm in found.arms
        ),
        "",
        describe_method(found),
        "",
        *(f"- {note}" for note in found.notes),
        *([""] if found.notes else []),
        "## Guards",
        "",
        "| version | guard | state | what it saw |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {guard.name} | {f'**{guard.state}**' if guard.tripped else guard.state} | {guard.detail} |"
            for name, guards in (("all", found.guards), *((arm.version, arm.guards) for arm in found.arms))
            for guard in guards
        ),
        "",
    ]
    if note := describe_slices(found):
        lines += ["## Slices", "", note, "", "| version | slice | champion's rows | rows | difference | interval |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {arm.version} | {part.column} = {part.value} | {part.champion_rows:,} | {part.challenger_rows:,} | "
            f"{signed(part.difference.estimate)} | {format_interval(part.difference)} |"
            for arm in found.arms
            for part in arm.slices
        ]
        lines.append("")
    return "\n".join(lines)
