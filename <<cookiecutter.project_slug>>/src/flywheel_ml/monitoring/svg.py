"""The parts of a plot as inline SVG; the page's style sheet sets the colours of their classes."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape


class Frame(NamedTuple):
    """The drawing area inside a plot, in the plot's units."""

    left: float
    top: float
    width: float
    height: float

    def x(self, share: float) -> float:
        """Return the position of a share of the width."""
        return self.left + share * self.width

    def y(self, share: float) -> float:
        """Return the position of a share of the height, counted from the bottom."""
        return self.top + (1 - share) * self.height


def svg(width: float, height: float, parts: Sequence[Markup], title: str, kind: str = "plot") -> Markup:
    """Return an SVG image that scales to its container; `title` describes it to screen readers."""
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        kind, width, height, title, Markup("").join(parts)
    )


def rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    """Return a rectangle; its class sets the colour."""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, x, y, max(0.0, width), max(0.0, height)
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def dot(x: float, y: float, radius: float, kind: str) -> Markup:
    """Return a circle."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>').format(kind, x, y, radius)


def text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    """Return a text with its anchor at (x, y)."""
    return Markup('<text class="label {}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )
