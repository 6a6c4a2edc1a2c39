"""Renders an experiment's report as a self-contained HTML page, without scripts."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from markupsafe import Markup

from flywheel_ml.flows.experiments import text
from flywheel_ml.flows.experiments.result import ArmResult, ExperimentReport
from flywheel_ml.monitoring import svg
from flywheel_ml.monitoring.plots import draw_both_widths
from flywheel_ml.utils import formatting
from flywheel_ml.utils.html import open_templates

TEMPLATE = "experiment.html.jinja"
ROW = 46
FILLED_SHARE = 0.7
"""The plot over time shows the range of the later looks: early intervals would flatten the rest."""


def render_page(found: ExperimentReport) -> str:
    """Render the page."""
    known = [arm for arm in found.arms if arm.difference.low is not None]
    return (
        open_templates(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            found=found,
            metric=text.name_metric(found),
            summary=text.summarise(found),
            rows=list(text.build_rows(found)),
            method=text.describe_method(found),
            slices_note=text.describe_slices(found),
            forest=draw_both_widths(partial(draw_differences, known, found)) if known else "",
            histories=[
                (arm, draw_both_widths(partial(draw_history, arm))) for arm in known if len(_list_known(arm)) > 1
            ],
            signed=text.signed,
            interval=text.format_interval,
            percent=formatting.percent,
            span=formatting.span,
            minute=formatting.minute,
            short=formatting.short_digest,
            tone={
                "better": "ok",
                "worse": "degraded",
                "not valid": "degraded",
                "undecided": "drift",
                "no data": "insufficient",
            },
        )
    )


def draw_differences(arms: Sequence[ArmResult], found: ExperimentReport, width: int) -> Markup:
    """Draw the difference of each arm with its interval, next to the line of no difference."""
    bounds = [bound for arm in arms for bound in (arm.difference.low, arm.difference.high) if bound is not None]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin
    frame = svg.Frame(84, 24, width - 96, ROW * len(arms))

    def place(value: float) -> float:
        return frame.x((value - low) / (high - low))

    bottom = frame.top + frame.height
    good, bad = (
        ("challenger better", "challenger worse")
        if found.better == "lower"
        else ("challenger worse", "challenger better")
    )
    parts = [
        svg.line(place(0), frame.top, place(0), bottom, "mark"),
        svg.text(place(0) - 8, 14, f"← {good}", "end") if place(0) - frame.left > 130 else Markup(""),
        svg.text(place(0) + 8, 14, f"{bad} →", "start") if frame.x(1) - place(0) > 130 else Markup(""),
    ]
    for at, arm in enumerate(arms):
        estimate, first, last = arm.difference.estimate, arm.difference.low, arm.difference.high
        if estimate is None or first is None or last is None:
            continue
        y = frame.top + ROW * (at + 0.5)
        parts += [
            svg.text(frame.left - 10, y + 4, f"version {arm.version}", "end", "strong"),
            svg.line(place(first), y, place(last), y, f"interval {_tone(arm)}"),
            svg.line(place(first), y - 6, place(first), y + 6, f"end {_tone(arm)}"),
            svg.line(place(last), y - 6, place(last), y + 6, f"end {_tone(arm)}"),
            svg.dot(place(estimate), y, 5, _tone(arm)),
        ]
    for share, anchor in ((0.0, "start"), (1.0, "end")):
        parts.append(svg.text(frame.x(share), bottom + 16, text.signed(low + share * (high - low)), anchor))
    if 0.12 < (0 - low) / (high - low) < 0.88:
        parts.append(svg.text(place(0), bottom + 16, "0", "middle", "strong"))
    title = "; ".join(f"version {arm.version}: {text.format_interval(arm.difference)}" for arm in arms)
    return svg.svg(width, bottom + 24, parts, f"Difference to the champion. {title}")


def draw_history(arm: ArmResult, width: int) -> Markup:
    """Draw how the interval of one arm became narrower."""
    known = _list_known(arm)
    later = sorted(high - low for _, _, low, high in known)[: max(2, round(FILLED_SHARE * len(known)))]
    shown = [one for one in known if one[3] - one[2] <= later[-1]]
    low, high = min(0.0, *(one[2] for one in shown)), max(0.0, *(one[3] for one in shown))
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin
    first, last = arm.looks[0].at, arm.looks[-1].at
    frame = svg.Frame(62, 10, width - 76, 190)

    def place(at: datetime, value: float) -> str:
        x = frame.x((at - first) / (last - first))
        return f"{x:.1f},{frame.y((min(max(value, low), high) - low) / (high - low)):.1f}"

    band = [place(at, top) for at, _, _, top in known] + [place(at, bottom) for at, _, bottom, _ in reversed(known)]
    line = [place(at, estimate) for at, estimate, _, _ in known]
    zero = frame.y((0 - low) / (high - low))
    parts = [
        svg.line(frame.left, frame.y(share), frame.x(1), frame.y(share), "grid" if share else "axis")
        for share in (0.0, 0.5, 1.0)
    ]
    parts += [
        svg.text(frame.left - 6, frame.y(share) + 4, text.signed(low + share * (high - low)), "end")
        for share in (0.0, 0.5, 1.0)
    ]
    parts += [
        Markup('<polygon class="band {}" points="{}"/>').format(_tone(arm), " ".join(band)),
        svg.line(frame.left, zero, frame.x(1), zero, "mark"),
        Markup('<polyline class="curve {}" points="{}"/>').format(_tone(arm), " ".join(line)),
        svg.text(frame.left, 218, formatting.minute(first), "start"),
        svg.text(frame.x(1), 218, formatting.minute(last), "end"),
    ]
    title = f"Difference of version {arm.version} over time, at last {text.format_interval(arm.difference)}"
    return svg.svg(width, 226, parts, title)


def _list_known(arm: ArmResult) -> list[tuple[datetime, float, float, float]]:
    """Return time, estimate and bounds of the looks at which the difference was known."""
    return [
        (look.at, look.difference.estimate, look.difference.low, look.difference.high)
        for look in arm.looks
        if look.difference.estimate is not None and look.difference.low is not None and look.difference.high is not None
    ]


def _tone(arm: ArmResult) -> str:
    return {"better": "ok", "worse": "degraded", "not valid": "degraded"}.get(arm.verdict, "drift")
