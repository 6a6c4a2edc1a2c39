"""Draws rates with their intervals and targets as a small SVG: readable on a phone, in light and dark mode."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from markupsafe import escape

WIDTH = 400
LEFT, RIGHT = 194, 20
"""Room for the names, and at the right edge."""
ROW, HEAD = 18, 20
STYLE = """
    text { font: 11.5px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2933; }
    .title { font-size: 13px; font-weight: 650; fill: #1d6583; }
    .kind { font-weight: 650; }
    .note, .tick { fill: #52606d; }
    .tick { text-anchor: middle; }
    .page { fill: #ffffff; }
    .grid { stroke: #d5dbe1; }
    .target { stroke: #c9620b; stroke-width: 2; }
    .interval { stroke: #2b7a9b; stroke-width: 2; }
    .rate { fill: #2b7a9b; }
    .missed { fill: #c62828; stroke: #c62828; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f3f6; }
      .title { fill: #7cc7e3; }
      .note, .tick { fill: #b6c2cf; }
      .page { fill: #0d1117; }
      .grid { stroke: #33404d; }
      .target { stroke: #f0953f; }
      .interval { stroke: #58b4d6; }
      .rate { fill: #58b4d6; }
      .missed { fill: #ff7b72; stroke: #ff7b72; }
    }
  """


class PlottedRate(NamedTuple):
    """A measured rate with its interval and target, all in [0, 1]."""

    kind: str
    name: str
    rate: float
    low: float
    high: float
    target: float
    is_missed: bool


class Axis(NamedTuple):
    """The range of a panel, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (rate - self.low) / (self.high - self.low)


def draw_rates(panels: Mapping[str, Sequence[PlottedRate]], note: str) -> str:
    """Draw one panel below the other; each has a head and a range of its own."""
    parts, top = [], 8.0
    for head, rates in panels.items():
        drawn, height = _draw_panel(head, rates, top)
        parts.append(drawn)
        top += height + 14
    height = top + 18
    title = escape("; ".join(f"{head}, {len(rates)} kinds" for head, rates in panels.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="title">\n'
        f'  <title id="title">{title}</title>\n  <style>{STYLE}</style>\n'
        f'  <rect class="page" width="{WIDTH}" height="{height:g}" rx="10"/>\n'
        f"{''.join(parts)}"
        f'  <text class="note" x="12" y="{height - 10:g}">{escape(note)}</text>\n</svg>\n'
    )


def _draw_panel(head: str, rates: Sequence[PlottedRate], top: float) -> tuple[str, float]:
    axis, lines = _choose_axis(rates), []
    y = top + 34
    for kind, group in groupby(rates, key=lambda one: one.kind):
        lines.append(f'  <text class="kind" x="12" y="{y + 14:g}">{escape(kind)}</text>\n')
        y += HEAD
        for one in group:
            lines.append(_draw_rate(one, axis, y))
            y += ROW
    grid = "".join(
        f'  <line class="grid" x1="{axis.x(tick):.1f}" y1="{top + 34:g}" x2="{axis.x(tick):.1f}" y2="{y:g}"/>\n'
        f'  <text class="tick" x="{axis.x(tick):.1f}" y="{top + 29:g}">{100 * tick:g}%</text>\n'
        for tick in axis.ticks
    )
    return f'  <text class="title" x="12" y="{top + 12:g}">{escape(head)}</text>\n{grid}{"".join(lines)}', y - top


def _choose_axis(rates: Sequence[PlottedRate]) -> Axis:
    """Begin at 0 or end at 1, whichever is near, and show all intervals; four steps."""
    is_low = max(one.target for one in rates) < 0.5
    span = max(one.high if is_low else 1 - one.low for one in rates)
    step = next((step for step in (0.005, 0.01, 0.02, 0.025, 0.05, 0.1) if 4 * step >= span), 0.25)
    steps = step * np.arange(5)
    ticks = tuple((steps if is_low else 1 - steps[::-1]).tolist())
    return Axis(ticks[0], ticks[-1], ticks)


def _draw_rate(one: PlottedRate, axis: Axis, y: float) -> str:
    middle, target = y + ROW / 2, axis.x(one.target)
    missed = " missed" if one.is_missed else ""
    return (
        f'  <text x="20" y="{middle + 4:g}">{escape(one.name)}</text>\n'
        f'  <line class="target" x1="{target:.1f}" y1="{middle - 7:g}" x2="{target:.1f}" y2="{middle + 7:g}"/>\n'
        f'  <line class="interval{missed}" x1="{axis.x(one.low):.1f}" y1="{middle:g}" x2="{axis.x(one.high):.1f}" '
        f'y2="{middle:g}"/>\n'
        f'  <circle class="rate{missed}" cx="{axis.x(one.rate):.1f}" cy="{middle:g}" r="3.5"/>\n'
    )
