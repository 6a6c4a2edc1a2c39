"""Draws small plots as inline SVG, without scripts or fonts. The page's style sheet sets colours for each medium."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from flywheel_ml.core.profile import Counts
from flywheel_ml.monitoring.drift import compute_shares
from flywheel_ml.monitoring.quality import Measure, is_error
from flywheel_ml.monitoring.result import Volume
from flywheel_ml.monitoring.svg import Frame
from flywheel_ml.monitoring.svg import dot as _dot
from flywheel_ml.monitoring.svg import line as _line
from flywheel_ml.monitoring.svg import rect as _rect
from flywheel_ml.monitoring.svg import svg as _svg
from flywheel_ml.monitoring.svg import text as _text
from flywheel_ml.utils.formatting import METRIC_NAMES, day, minute, number, percent
from flywheel_ml.utils.formatting import metric_value as words_measure

WIDE, NARROW = 920, 320
"""Widths of plots: across the page, and in a card or on a phone; about the width in pixels."""
DISPLAY_BINS = 32
MAX_VALUES = 40
"""Numeric columns with at most this many distinct values get one bar per value."""
MAX_BAR_RATIO = 5
"""A bar that exceeds the next by more than this factor is cut."""
MIN_SPIKE_SHARE = 0.01
"""From this share of reference rows on, the lowest value is a spike, not the tail of a range."""
MIN_SHOWN_SHARE = 0.005
MAX_CATEGORIES = 6
MAX_LABEL = 16


def draw_distribution(
    reference: Counts, window: Counts, title: str, write: Callable[[float], str], size: tuple[int, int] = (NARROW, 150)
) -> Markup:
    """Draw reference and window of one column: a histogram or bars of categories; `write` formats a value."""
    if not reference.present or not window.present:
        return Markup("")
    if reference.kind == "categorical":
        return _draw_bars(reference, window, title)
    return _draw_histogram(reference, window, title, write, size)


def draw_both_widths(draw: Callable[[int], Markup]) -> Markup:
    """Draw a plot in two widths, for desktop and phone; the style sheet shows one, so that text keeps its size."""
    return Markup('<div class="desk">{}</div><div class="phone">{}</div>').format(draw(WIDE), draw(NARROW))


def draw_interval(name: str, measure: Measure, limit: float, width: int) -> Markup:
    """Draw a metric of the window with its interval, its reference and its limit."""
    assert measure.low is not None
    assert measure.high is not None
    assert measure.reference is not None
    values = (measure.low, measure.high, measure.reference, limit)
    frame = Frame(85, 30, width - 180, 20)
    low, high, error = min(values), max(values), is_error(name)
    now, tested, edge = (words_measure(name, value) for value in (measure.value, measure.reference, limit))

    def at(value: float) -> float:
        return frame.x((value - low) / (high - low or 1.0))

    middle = frame.y(0.5)
    parts = [
        _rect(at(limit), frame.top, width - at(limit), frame.height, "below")
        if error
        else _rect(0, frame.top, at(limit), frame.height, "below"),
        _line(0, middle, width, middle, "axis"),
        _line(at(limit), frame.top - 4, at(limit), frame.y(0) + 4, "limit"),
        _line(at(measure.reference), frame.top - 4, at(measure.reference), frame.y(0) + 4, "mark"),
        _line(at(measure.low), middle, at(measure.high), middle, "interval"),
        _line(at(measure.low), middle - 6, at(measure.low), middle + 6, "window"),
        _line(at(measure.high), middle - 6, at(measure.high), middle + 6, "window"),
        _dot(at(measure.value), middle, 6, "window"),
        # The limit is always on the worse side of the reference, so the labels extend in opposite directions.
        _text(at(limit) + (-3 if error else 3), 18, f"limit {edge}", "start" if error else "end"),
        _text(at(measure.reference) + (3 if error else -3), 18, f"tested {tested}", "end" if error else "start"),
        _text(at(measure.value), 70, f"now {now}", "middle", "strong"),
    ]
    return _svg(width, 78, parts, f"{METRIC_NAMES[name]} now {now}, when tested {tested}, limit {edge}")


def draw_roc(points: Sequence[dict[str, float]]) -> Markup:
    """Draw the ROC curve."""
    curve = [(point["false_positive_rate"], point["true_positive_rate"]) for point in points]
    return _draw_square(curve, (0.0, 1.0), "false positive rate", "true positive rate", "ROC curve", "line")


def draw_calibration(points: Sequence[dict[str, float]], up: str = "share of positives") -> Markup:
    """Draw mean score against observed share (labelled `up`), one dot per bin of about equal size."""
    curve = [(point["predicted"], point["observed"]) for point in points]
    top = min(1.0, _round_up(max(max(x, y) for x, y in curve)))
    return _draw_square(curve, (0.0, top), "mean score", up, "Calibration", "line", "dots")


def draw_predictions(points: Sequence[dict[str, float]]) -> Markup:
    """Draw predicted against observed values, for a sample of the rows."""
    curve = [(point["predicted"], point["observed"]) for point in points]
    low, high = min(map(min, curve)), max(map(max, curve))
    ends = (low, high if high > low else low + 1.0)
    return _draw_square(curve, ends, "predicted", "observed", "Predicted and observed", "dots")


def draw_volume(found: Volume, width: int) -> Markup:
    """Draw the number of rows over time."""
    frame = Frame(44, 10, width - 52, 96)
    most = max(bucket.rows for bucket in found.buckets)
    top = _round_up(most)
    step = frame.width / len(found.buckets)
    parts = list(_draw_grid(frame, 0.0, top, lambda value: f"{value:,.0f}"))
    for at, bucket in enumerate(found.buckets):
        y = frame.y(bucket.rows / top)
        parts.append(_rect(frame.left + (at + 0.08) * step, y, 0.84 * step, frame.y(0) - y, "window"))
    write = day if found.bucket_hours >= 24 else minute
    first, last = found.buckets[0].start, found.buckets[-1].start
    parts.append(_text(frame.left, 122, write(first), "start"))
    if len(found.buckets) > 1:
        parts.append(_text(frame.x(1), 122, write(last), "end"))
    return _svg(width, 128, parts, f"Rows over time, {write(first)} to {write(last)}, at most {most:,}")


def draw_meter(effect: float, min_effect: float) -> Markup:
    """Draw the size of an effect next to its minimum."""
    full = max(4 * min_effect, 1e-9)
    parts = [
        _rect(0, 3, 64, 6, "track"),
        _rect(0, 3, 64 * min(1.0, effect / full), 6, "over" if effect >= min_effect else "under"),
        _line(64 * min_effect / full, 0, 64 * min_effect / full, 12, "limit"),
    ]
    return _svg(64, 12, parts, f"{effect:.3f}, min_effect {min_effect:.3f}", "meter")


class _Bars(NamedTuple):
    """Shares per bar of both sides, the range of the bars, and the shares outside of it."""

    reference: np.ndarray
    window: np.ndarray
    low: float
    high: float
    below: float
    above: float


def _draw_histogram(
    reference: Counts, window: Counts, title: str, write: Callable[[float], str], size: tuple[int, int]
) -> Markup:
    reference, window = reference.merge_bins(), window.merge_bins()
    by_value = len(reference.edges) <= MAX_VALUES
    bars = _bars_by_value(reference, window) if by_value else _bars_by_bin(reference, window)
    both = np.maximum(bars.reference, bars.window)
    tallest, second = np.sort(both)[::-1][[0, min(1, len(both) - 1)]]
    # One value that most rows share would flatten all others, so its bar is cut and labelled with its shares.
    cut = second > 0 and tallest > MAX_BAR_RATIO * second
    top = 1.6 * second if cut else 1.04 * tallest
    width, height = size
    frame = Frame(6, 16, width - 12, height - 38)
    step = frame.width / len(both)
    gap = 0.1 * step if by_value else 0.0
    parts = [
        _rect(frame.left + i * step + gap, frame.y(share), step - 2 * gap, frame.height * share, "reference")
        for i, share in enumerate(np.minimum(bars.reference / top, 1.0))
        if share > 0
    ]
    parts.append(_draw_outline(frame, np.minimum(bars.window / top, 1.0)))
    if cut:
        at = int(np.argmax(both))
        left = at < len(both) / 2
        shown = f"{percent(bars.reference[at])} → {percent(bars.window[at])}"
        parts.append(
            _text(
                frame.left + (at + left) * step + (5 if left else -5), 28, shown, "start" if left else "end", "strong"
            )
        )
    parts.append(_line(frame.left, frame.y(0), frame.x(1), frame.y(0), "axis"))
    labels = write(bars.low), write(bars.high)
    parts.append(_text(frame.left, height - 8, labels[0], "start"))
    parts.append(_text(frame.x(1), height - 8, labels[1], "end"))
    for share, side, anchor, x in ((bars.below, "below", "start", 0.0), (bars.above, "above", "end", 1.0)):
        if share >= MIN_SHOWN_SHARE:
            parts.append(_text(frame.x(x), 10, f"{percent(share)} {side}", anchor, "strong"))
    return _svg(width, height, parts, f"{title}: distribution from {labels[0]} to {labels[1]}, reference and window")


def _bars_by_value(reference: Counts, window: Counts) -> _Bars:
    """Compute one bar per value of the reference; a value between two of them counts to the upper one."""
    before, after = _cumulate(reference), _cumulate(window)
    return _Bars(
        np.diff(before, prepend=0.0),
        np.diff(after, prepend=0.0),
        reference.edges[0],
        reference.edges[-1],
        below=0.0,
        above=float(1 - after[-1]),
    )


def _bars_by_bin(reference: Counts, window: Counts) -> _Bars:
    """Compute bars of equal width over all but the outermost half percent of either side."""
    edges = np.array(reference.edges)
    before, after = _cumulate(reference), _cumulate(window)
    last = len(edges) - 1
    low = min(float(edges[min(int(np.searchsorted(side, 0.005)), last)]) for side in (before, after))
    high = max(float(edges[min(int(np.searchsorted(side, 0.995)), last)]) for side in (before, after))
    if low == high:
        low, high = float(edges[0]), float(edges[-1])
    display = np.linspace(low, high, DISPLAY_BINS + 1)
    shares_before, shares_after = np.interp(display, edges, before), np.interp(display, edges, after)
    below = float(shares_after[0])
    if low == edges[0] and before[0] >= MIN_SPIKE_SHARE:
        # Many reference rows share the lowest value, so it belongs in the first bar, not below it.
        shares_before[0] = shares_after[0] = below = 0.0
    return _Bars(np.diff(shares_before), np.diff(shares_after), low, high, below, float(1 - shares_after[-1]))


def _draw_bars(reference: Counts, window: Counts, title: str) -> Markup:
    before, after = compute_shares(reference), compute_shares(window)
    moved = sorted(before, key=lambda name: (-abs(after[name] - before[name]), -before[name], name))
    shown = sorted(moved[:MAX_CATEGORIES], key=lambda name: (-before[name], name))
    rows = [(name, before[name], after[name]) for name in shown]
    if len(before) > len(shown):
        rest = [name for name in before if name not in set(shown)]
        rows.append((f"{len(rest)} others", sum(before[n] for n in rest), sum(after[n] for n in rest)))
    if reference.unseen or window.unseen:
        rows.append(("never seen", reference.unseen / reference.present, window.unseen / window.present))
    top = max(max(ref, win) for _, ref, win in rows) or 1.0
    frame = Frame(104, 8, 120, 22 * len(rows))
    parts = []
    for at, (name, ref, win) in enumerate(rows):
        y = frame.top + 22 * at
        short = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
        parts += [
            _text(98, y + 13, short, "end"),
            _rect(frame.left, y + 2, frame.width * ref / top, 7, "reference"),
            _rect(frame.left, y + 9, frame.width * win / top, 7, "window"),
            _text(
                frame.left + frame.width * max(ref, win) / top + 5, y + 13, f"{percent(ref)} → {percent(win)}", "start"
            ),
        ]
    return _svg(320, frame.top + frame.height + 4, parts, f"{title}: shares of categories, reference and window")


def _draw_square(
    points: list[tuple[float, float]], ends: tuple[float, float], across: str, up: str, title: str, *kinds: str
) -> Markup:
    """Draw points on two axes of equal range, with the diagonal; `kinds` are "line", "dots" or both."""
    low, top = ends
    # Room for the longest number on the left.
    room = 40 + 8 * max(0, max(len(number(end)) for end in ends) - 3)
    frame = Frame(room, 10, 290 - room, 220)
    points = [((x - low) / (top - low), (y - low) / (top - low)) for x, y in points]
    parts = list(_draw_grid(frame, low, top, number))
    parts.append(_line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "mark"))
    if "line" in kinds:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        parts.append(Markup('<polyline class="curve" points="{}"/>').format(path))
    if "dots" in kinds:
        parts += [_dot(frame.x(x), frame.y(y), 3.5, "window") for x, y in points]
    parts += [
        _text(frame.x(0), 246, number(low), "start"),
        _text(frame.x(1), 246, number(top), "end"),
        _text(frame.x(0.5), 246, across, "middle"),
        Markup(
            '<text class="label" text-anchor="middle" transform="translate(12 {:.0f}) rotate(-90)">{}</text>'
        ).format(frame.y(0.5), up),
    ]
    return _svg(300, 254, parts, title)


def _cumulate(counts: Counts) -> np.ndarray:
    """Compute the share of values up to each edge."""
    below: np.ndarray = np.cumsum(counts.counts[:-1]) / counts.present
    return below


def _round_up(value: float) -> float:
    scale = 10.0 ** np.floor(np.log10(max(value, 1e-3)))
    return float(next(step * scale for step in (1, 2, 2.5, 5, 10) if step * scale >= value))


def _draw_grid(frame: Frame, low: float, top: float, write: Callable[[float], str]) -> list[Markup]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        parts.append(_line(frame.left, frame.y(share), frame.x(1), frame.y(share), "grid" if share else "axis"))
        parts.append(_text(frame.left - 6, frame.y(share) + 4, write(low + share * (top - low)), "end"))
    return parts


def _draw_outline(frame: Frame, heights: np.ndarray) -> Markup:
    step = frame.width / len(heights)
    corners = [(frame.left, frame.y(0))]
    for at, height in enumerate(heights):
        corners += [(frame.left + at * step, frame.y(height)), (frame.left + (at + 1) * step, frame.y(height))]
    corners.append((frame.x(1), frame.y(0)))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return Markup('<polyline class="outline" points="{}"/>').format(path)
