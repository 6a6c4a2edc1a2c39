"""Draws the quality of the frozen and the live model over the periods, for the page and as a picture of its own."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from flywheel_ml.monitoring.replay.result import Measured, PeriodResult, ReplayResult
from flywheel_ml.monitoring.replay.summary import write_headline
from flywheel_ml.monitoring.svg import Frame, dot, line, rect, svg, text
from flywheel_ml.utils import formatting

WIDE, NARROW = 920, 340
TITLE_CHARACTERS, TITLE_LINE = 92, 24
"""Of the picture: most characters in a line of its title, and the height of a line."""
TICKS = 5
HEIGHT, LANE = 270, 22
"""Height of the plot, and of each lane of events below it."""
SHIFT = 6.0
"""The two models of a period are drawn this far from its middle."""
STYLE = Path(__file__).with_name("picture.css")
"""Style of the picture, which the page includes too."""


class Axis(NamedTuple):
    """The range of the metric, the distance between its ticks, and where the periods are."""

    frame: Frame
    low: float
    high: float
    step: float
    periods: int

    def x(self, at: float) -> float:
        """Return the position of a period; 0 is the training, 1 the first replayed period."""
        return self.frame.x((at + 0.5) / (self.periods + 1))

    def y(self, value: float) -> float:
        """Return the position of a value."""
        return self.frame.y((value - self.low) / (self.high - self.low))


def draw(result: ReplayResult, width: int) -> Markup:
    """Draw the plot with its lanes of events; its colours come from `STYLE`."""
    parts, height = _draw_parts(result, width)
    return svg(width, height, parts, _describe(result), "plot replay")


def render_picture(result: ReplayResult) -> str:
    """Render the picture as an SVG file with a title and a legend."""
    plot, height = _draw_parts(result, WIDE)
    lines = textwrap.wrap(write_headline(result), TITLE_CHARACTERS)
    below, bottom = 30 + TITLE_LINE * len(lines), 14
    title = [text(20, 30 + at * TITLE_LINE, part, "start", "title") for at, part in enumerate(lines)]
    title += [*_draw_legend(result, 20, below), text(20, below + 24, _name_metric(result), "start", "strong")]
    top = below + 24
    moved = Markup('<g transform="translate(0 {})">{}</g>').format(top, Markup("").join(plot))
    total = top + height + bottom
    content = Markup("").join([rect(0, 0, WIDE, total, "page"), *title, moved])
    size = f'viewBox="0 0 {WIDE} {total:g}" width="{WIDE}" height="{total:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="replay" {size} role="img" '
        f'aria-label="{escape(_describe(result))}"><style>{read_style()}</style>{content}</svg>\n'
    )


def read_style() -> str:
    """Read the style of the picture."""
    return STYLE.read_text(encoding="utf-8")


def _name_metric(result: ReplayResult) -> str:
    return formatting.METRIC_NAMES[result.metric]


def _describe(result: ReplayResult) -> str:
    return (
        f"{formatting.METRIC_NAMES[result.metric]} of the frozen and the live model by period. {write_headline(result)}"
    )


def _draw_legend(result: ReplayResult, x: float, y: float) -> Iterator[Markup]:
    entries = (
        ("frozen", f"frozen: trained on {result.trained_on[0]} to {result.trained_on[1]}, never again"),
        ("live", "live: retrained by the policy, promoted by the canary"),
    )
    for kind, label in entries:
        yield dot(x + 5, y - 4, 5, kind)
        yield text(x + 16, y, label, "start")
        x += 32 + 6.1 * len(label)
    yield text(x, y, f"bars: {100 * result.confidence:.0f}% intervals", "start")


def _draw_parts(result: ReplayResult, width: int) -> tuple[list[Markup], float]:
    values = [edge for period in result.periods for one in (period.frozen, period.live) for edge in _edges(one)]
    values += [] if result.first.tested is None else [result.first.tested]
    if not values:
        return [text(width / 2, 30, "No period had enough labels to measure quality.", "middle")], 48
    low, high, step = find_ticks(min(values), max(values))
    axis = Axis(Frame(54, 12, width - 68, HEIGHT), low, high, step, len(result.periods))
    is_narrow = width < WIDE
    parts = [*_draw_grid(axis, result.metric), *_draw_training(axis, result, is_narrow)]
    parts += _draw_promotions(axis, result.periods)
    for kind, shift in (("frozen", -SHIFT), ("live", SHIFT)):
        parts += _draw_line(axis, [(at, getattr(one, kind)) for at, one in enumerate(result.periods)], kind, shift)
    lanes, bottom = _draw_lanes(axis, result.periods, is_narrow)
    return [*parts, *lanes], bottom


def _edges(measured: Measured | None) -> Iterator[float]:
    if measured is not None:
        yield from (one for one in (measured.low, measured.high, measured.value) if one is not None)


def _draw_grid(axis: Axis, metric: str) -> Iterator[Markup]:
    for at in range(round((axis.high - axis.low) / axis.step) + 1):
        value = axis.low + at * axis.step
        y = axis.y(value)
        yield line(axis.frame.left, y, axis.frame.x(1), y, "grid" if at else "axis")
        yield text(axis.frame.left - 6, y + 4, formatting.metric_value(metric, value), "end")


def find_ticks(low: float, high: float) -> tuple[float, float, float]:
    """Find round ends of an axis that holds both values, and the distance between its ticks."""
    rough = (high - low or abs(high) or 1.0) / TICKS
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return step * first, step * max(last, first + 1), step


def _draw_training(axis: Axis, result: ReplayResult, is_narrow: bool) -> Iterator[Markup]:
    """Draw the band of the training, and the value of its test as a dashed line through all periods."""
    width = axis.frame.width / (axis.periods + 1)
    yield rect(axis.frame.left, axis.frame.top, width, axis.frame.height, "band")
    if (tested := result.first.tested) is None:
        return
    y = axis.y(tested)
    yield line(axis.x(0), y, axis.frame.x(1), y, "tested")
    yield dot(axis.x(0), y, 4.5, "frozen")
    is_high = tested > (axis.low + axis.high) / 2
    yield text(axis.x(0), y + (18 if is_high else -9), "test" if is_narrow else "when tested", "middle")


def _draw_promotions(axis: Axis, periods: Sequence[PeriodResult]) -> Iterator[Markup]:
    """Draw where another version took over: a promotion at the end of a period serves from the next one on."""
    for at, period in enumerate(periods):
        if period.promoted and at + 1 < len(periods):
            x = (axis.x(at + 1) + axis.x(at + 2)) / 2
            yield line(x, axis.frame.top, x, axis.frame.y(0), "promoted")
            yield text(x + 4, axis.frame.top + 26, f"v{period.promoted}", "start", "live")


def _draw_line(axis: Axis, points: Sequence[tuple[int, Measured | None]], kind: str, shift: float) -> Iterator[Markup]:
    places = [(axis.x(at + 1) + shift, one) for at, one in points if one is not None]
    path = " ".join(f"{x:.1f},{axis.y(one.value):.1f}" for x, one in places)
    yield Markup('<polyline class="{}" points="{}"/>').format(kind, path)
    for x, one in places:
        if one.low is not None and one.high is not None:
            yield line(x, axis.y(one.low), x, axis.y(one.high), kind)
        yield dot(x, axis.y(one.value), 4.2, kind)


def _shorten(label: str) -> str:
    """`Jul 2013` → `Jul`, `1 Jul 2013` → `1 Jul`, for a phone."""
    words = label.split(" ")
    return " ".join(words[:2]) if words[0].isdigit() else words[0]


def _draw_lanes(axis: Axis, periods: Sequence[PeriodResult], is_narrow: bool) -> tuple[list[Markup], float]:
    """Draw the name of each period, and below it whether data drifted and what came of a retraining."""
    base = axis.frame.y(0)
    parts = [text(axis.x(0), base + 18, "trained", "middle")]
    for at, period in enumerate(periods):
        x, name = axis.x(at + 1), _shorten(period.label) if is_narrow else period.label
        parts.append(text(x, base + 18, name, "middle", "strong"))
        if period.verdict in ("drift", "degraded"):
            count = len(period.drifted)
            parts.append(dot(x - (0 if is_narrow else 26), base + 18 + LANE - 4, 4, "drift"))
            label = "" if is_narrow else f"{count} drifted" if count else period.verdict
            parts.append(text(x - 18, base + 18 + LANE, label, "start"))
        if period.retrained is not None:
            kind = "bad" if period.retrained.role == "refused" else "good"
            mark = f"v{period.retrained.version}" + ("" if is_narrow else " refused" if kind == "bad" else " trained")
            parts.append(text(x, base + 18 + 2 * LANE, mark, "middle", kind))
    return parts, base + 18 + 2 * LANE + 10
