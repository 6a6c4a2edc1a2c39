"""Draws the figure of the canary's simulation as a small SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 720, 330, 52, 16, 44, 268
COLORS = ("#b45309", "#1d4ed8", "#0f766e", "#9ca3af", "#dc2626", "#7c3aed")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2937}.last{font-weight:600}"
    "polyline{fill:none;stroke-width:2}line{stroke:#d1d5db}"
)


def draw_curves(x: Sequence[float], curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write curves of shares in [0, 1] against `x`, with a legend that ends in the last value of each."""
    width, height = WIDTH - LEFT - LEGEND, HEIGHT - TOP - BOTTOM

    def place(at: float, share: float) -> str:
        return f"{LEFT + width * at / x[-1]:.1f},{TOP + height * (1 - share):.1f}"

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + height * (1 - share)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + width}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for mark in (0, 0.5, 1, 1.5, 2):
        at = LEFT + width * mark / x[-1]
        parts.append(f'<text x="{at:.1f}" y="{TOP + height + 18}" text-anchor="middle">{mark:g}</text>')
    label = "labelled rows, as a multiple of the fixed-horizon sample"
    parts.append(f'<text x="{LEFT + width / 2}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    for at, ((name, shares), color) in enumerate(zip(curves.items(), COLORS, strict=True)):
        points = " ".join(place(*point) for point in zip(x, shares, strict=True))
        y = TOP + 14 + 40 * at
        parts.append(f'<polyline points="{points}" stroke="{color}"/>')
        parts.append(f'<rect x="{LEFT + width + 16}" y="{y - 9}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{LEFT + width + 32}" y="{y}">{escape(name)}</text>')
        parts.append(f'<text x="{LEFT + width + 32}" y="{y + 16}" class="last">{shares[-1]:.1%}</text>')
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        f"<title>Share of simulated canaries that were decided, against labelled rows</title>\n"
        f'<style>{STYLE}</style>\n<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )
