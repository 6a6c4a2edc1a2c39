"""Numbers and moments as a person reads them."""

from datetime import datetime

METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "r2": "R²",
    "average_precision": "PR AUC",
    "log_loss": "log loss",
    "macro_f1": "macro F1",
    "lowest_recall": "recall of the class found least",
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
"""Every measure of core/metrics.py in the order it is shown."""
_IN_UNITS = {"mae", "rmse", "bias", "interval_width"}
_SHARES = {"accuracy", "precision", "recall", "lowest_recall", "prevalence", "coverage"}


def percent(share: float) -> str:
    """A share as a percentage; what is not zero never looks like it."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{share:.1%}"


def rows(count: int) -> str:
    """How many rows, in words."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def overlap(count: int, of: int, have_times: bool) -> str:
    """How many test rows training has seen; the same ones, or where rows have times, at another."""
    return f"{count:,} of {of:,} test rows equal a training row{' but for the time' if have_times else ''}"


def number(value: float, unit: str = "") -> str:
    """Three significant digits or all before the point, with the unit; four digits (years) stand together."""
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
    """A measure's value: shares as percentages, what has the target's unit in three digits, else three decimals."""
    if name in _SHARES:
        return percent(value)
    return number(value) if name in _IN_UNITS else f"{value:.3f}".replace("-", "−")


def metric_change(name: str, before: float, after: float) -> str:
    """How a measure moved, with its sign; shares in percentage points."""
    difference = after - before
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"
    if name in _SHARES:
        return f"{sign}{abs(difference) * 100:.1f} pp"
    return f"{sign}{number(abs(difference)) if name in _IN_UNITS else format(abs(difference), '.3f')}"


def p_value(p: float) -> str:
    """A p-value; below one in ten thousand only that it is."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def day(moment: datetime) -> str:
    """A date such as 3 Nov 2013."""
    return f"{moment.day} {moment:%b %Y}"


def minute(moment: datetime) -> str:
    """A date and time such as 3 Nov 2013 14:05."""
    return f"{day(moment)} {moment:%H:%M}"


def span(first: datetime | None, last: datetime | None) -> str:
    """A stretch of time: by days when it is longer than two, else by minutes."""
    if first is None or last is None:
        return "no times"
    if (last - first).days >= 2:
        return f"{day(first)} to {day(last)}"
    return f"{minute(first)} to {minute(last)}"


def short_digest(digest: str | None) -> str:
    """A sha256 as people read it, and as folders are named."""
    return digest[:8] if digest else "unknown"
