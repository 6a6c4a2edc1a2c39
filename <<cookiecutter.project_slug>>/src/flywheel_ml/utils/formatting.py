"""Formats numbers, metrics and timestamps for people."""

from datetime import datetime

METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "r2": "R²",
    "average_precision": "PR AUC",
    "log_loss": "log loss",
    "macro_f1": "macro F1",
    "lowest_recall": "lowest recall of any class",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "bias": "bias",
    "coverage": "coverage of the intervals",
    "interval_width": "width of the intervals",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "recentered_calibration_error": "calibration error at the observed base rate",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "prevalence": "share of positives",
    "mean_cost": "cost per row",
}
"""Display names of the metrics in core/metrics.py, in display order."""
_IN_UNITS = {"mae", "rmse", "bias", "interval_width"}
_SHARES = {"accuracy", "precision", "recall", "lowest_recall", "prevalence", "coverage"}


def percent(share: float) -> str:
    """Format a share as a percentage; a share above zero never shows as zero."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{share:.1%}"


def rows(count: int) -> str:
    """Format a number of rows."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def overlap(count: int, of: int, have_times: bool) -> str:
    """Describe how many test rows also occur in training, with another time if rows have times."""
    return f"{count:,} of {of:,} test rows equal a training row{' but for the time' if have_times else ''}"


def number(value: float, unit: str = "") -> str:
    """Format three significant digits, or all before the point, with the unit; four digits get no separator."""
    size = abs(value)
    if size >= 10_000:
        shown = f"{value:,.0f}"
    elif size >= 100:
        shown = f"{value:.0f}"
    elif size and size < 0.001:
        shown = f"{value:.2g}"
    else:
        shown = f"{value:.3g}"
    joint = "" if unit in ("", "%", "°") else "\N{NO-BREAK SPACE}"
    return f"{shown.replace('-', '−')}{joint}{unit}"


def metric_value(name: str, value: float) -> str:
    """Format a metric: shares as percentages, values in the target's unit with 3 digits, others with 3 decimals."""
    if name in _SHARES:
        return percent(value)
    return number(value) if name in _IN_UNITS else f"{value:.3f}".replace("-", "−")


def metric_change(name: str, before: float, after: float) -> str:
    """Format the change of a metric with its sign; shares in percentage points."""
    difference = after - before
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"
    if name in _SHARES:
        return f"{sign}{abs(difference) * 100:.1f} pp"
    return f"{sign}{number(abs(difference)) if name in _IN_UNITS else format(abs(difference), '.3f')}"


def p_value(p: float) -> str:
    """Format a p-value; very small ones as `< 0.0001`."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def day(timestamp: datetime) -> str:
    """Format a date such as 3 Nov 2013."""
    return f"{timestamp.day} {timestamp:%b %Y}"


def minute(timestamp: datetime) -> str:
    """Format a date and time such as 3 Nov 2013 14:05."""
    return f"{day(timestamp)} {timestamp:%H:%M}"


def span(first: datetime | None, last: datetime | None) -> str:
    """Format a period: by days if it is longer than two, else by minutes."""
    if first is None or last is None:
        return "no times"
    if (last - first).days >= 2:
        return f"{day(first)} to {day(last)}"
    return f"{minute(first)} to {minute(last)}"


def short_digest(digest: str | None) -> str:
    """Shorten a sha256 for display and for folder names."""
    return digest[:8] if digest else "unknown"
