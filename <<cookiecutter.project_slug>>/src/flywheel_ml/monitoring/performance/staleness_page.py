"""Renders quality over age as a self-contained HTML page with one SVG plot."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from flywheel_ml.monitoring.performance.staleness import AgedVersion, Staleness
from flywheel_ml.monitoring.svg import Frame, dot, line, svg, text
from flywheel_ml.utils import formatting
from flywheel_ml.utils.html import open_templates

TEMPLATE = "staleness.html.jinja"
WIDE, NARROW = 920, 340
MAX_LINES = 6
"""Most versions in the plot, the newest; the table has all."""


def render_page(found: Staleness) -> str:
    """Render the page."""
    drawn = [version for version in found.versions if any(w.value is not None for w in version.windows)][:MAX_LINES]
    metric = formatting.METRIC_NAMES[found.metric]
    return (
        open_templates(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            found=found,
            metric=metric,
            drawn=[(at, version) for at, version in enumerate(drawn)],
            plots=[(kind, _draw(drawn, found.metric, width)) for kind, width in (("desk", WIDE), ("phone", NARROW))],
            write=lambda value: "–" if value is None else formatting.metric_value(found.metric, value),
            day=formatting.day,
            minute=formatting.minute,
        )
    )


def _draw(versions: Sequence[AgedVersion], metric: str, width: int) -> Markup:
    """Draw one line per version: its test metric at age 0, then each window at its mean age, with its interval."""
    windows = [window for version in versions for window in version.windows if window.value is not None]
    values = [edge for window in windows for edge in (window.low, window.high) if edge is not None]
    values += [version.tested for version in versions if version.tested is not None]
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    margin = 0.08 * (high - low or abs(high) or 1.0)
    low, high = low - margin, high + margin
    oldest = max(window.age_days for window in windows) or 1.0
    frame = Frame(58, 10, width - 72, 250)

    def place(age: float, value: float) -> tuple[float, float]:
        return frame.x(age / oldest), frame.y((value - low) / (high - low))

    parts = []
    for share in (0.0, 0.5, 1.0):
        parts.append(line(frame.left, frame.y(share), frame.x(1), frame.y(share), "grid" if share else "axis"))
        label = formatting.metric_value(metric, low + share * (high - low))
        parts.append(text(frame.left - 6, frame.y(share) + 4, label, "end"))
    for at, version in enumerate(versions):
        points = [] if version.tested is None else [place(0.0, version.tested)]
        for window in version.windows:
            if window.value is None or window.low is None or window.high is None:
                continue
            x, y = place(window.age_days, window.value)
            parts.append(line(x, place(0, window.low)[1], x, place(0, window.high)[1], f"whisker v{at}"))
            points.append((x, y))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(Markup('<polyline class="curve v{}" points="{}"/>').format(at, path))
        parts += [dot(x, y, 4, f"v{at}") for x, y in points]
    parts.append(text(frame.left, 280, "0 days: test rows", "start"))
    parts.append(text(frame.x(1), 280, f"{oldest:.0f} days", "end"))
    return svg(width, 288, parts, f"{formatting.METRIC_NAMES[metric]} over the age of {len(versions)} versions")
