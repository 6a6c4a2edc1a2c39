"""Draws the evaluation as one figure for MLflow."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flywheel_ml.utils.files import replacing

Points = Sequence[Mapping[str, float]]
_BLUE, _GREY = "#2563eb", "#9ca3af"


def draw_evaluation(path: Path, title: str, plots: Mapping[str, Points]) -> None:
    """Write the available curves and the importance as a PNG of two or four panels, atomically."""
    curves = [name for name in _PANELS if plots.get(name)]
    figure = Figure(figsize=(11, 8.5 if len(curves) > 1 else 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, fontweight="bold", parse_math=False)
    panels = figure.subplots(2 if len(curves) > 1 else 1, 2).flatten()
    for name, panel in zip(curves, panels, strict=False):
        _PANELS[name](panel, plots[name])
    importance = panels[len(curves)]
    top = list(plots["importance"])[:12][::-1]
    importance.barh(range(len(top)), [point["loss"] for point in top], color=_BLUE)
    # A dollar sign in a column name must not start a formula.
    importance.set_yticks(range(len(top)), [str(point["column"]) for point in top], parse_math=False)
    importance.set_title("Importance (what shuffling the column adds to the loss)", loc="left", fontsize=11)
    for panel in panels[: len(curves) + 1]:
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(curves) + 1 :]:
        panel.set_axis_off()
    with replacing(path) as part, warnings.catch_warnings():
        # Characters missing from matplotlib's font are drawn as empty boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _draw_roc(panel: Axes, points: Points) -> None:
    _draw_curve(panel, points, "false_positive_rate", "true_positive_rate", "ROC curve")
    panel.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)


def _draw_precision_recall(panel: Axes, points: Points) -> None:
    _draw_curve(panel, points, "recall", "precision", "Precision and recall")


def _draw_calibration(panel: Axes, points: Points) -> None:
    _draw_curve(panel, points, "predicted", "observed", "Calibration", marker="o")
    panel.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)


def _draw_predicted(panel: Axes, points: Points) -> None:
    predicted, observed = [point["predicted"] for point in points], [point["observed"] for point in points]
    panel.scatter(predicted, observed, s=12, color=_BLUE, alpha=0.6)
    ends = [min(*predicted, *observed), max(*predicted, *observed)]
    panel.plot(ends, ends, color=_GREY, linestyle=":", linewidth=1)
    panel.set_title("Predicted and observed values", loc="left", fontsize=11)
    panel.set_xlabel("predicted")
    panel.set_ylabel("observed")


def _draw_errors(panel: Axes, points: Points) -> None:
    panel.plot([point["error"] for point in points], [point["share"] for point in points], color=_BLUE, linewidth=2)
    panel.set_title("Share of rows with at most this error", loc="left", fontsize=11)
    panel.set_xlabel("absolute error")
    panel.set_ylim(0, 1)


_PANELS = {
    "roc": _draw_roc,
    "precision_recall": _draw_precision_recall,
    "calibration": _draw_calibration,
    "predicted": _draw_predicted,
    "errors": _draw_errors,
}
"""Curves of metrics.curves, in the order in which they are drawn."""


def _draw_curve(panel: Axes, points: Points, x: str, y: str, title: str, marker: str = "") -> None:
    panel.plot([point[x] for point in points], [point[y] for point in points], color=_BLUE, linewidth=2, marker=marker)
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel(x.replace("_", " "))
    panel.set_ylabel(y.replace("_", " "))
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
