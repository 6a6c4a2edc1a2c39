"""The evaluation as one picture, for MLflow and for people who would rather look than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import replacing

Points = Sequence[Mapping[str, float]]
_BLUE, _GREY = "#2563eb", "#9ca3af"


def evaluation(path: Path, title: str, plots: Mapping[str, Points]) -> None:
    """Write ROC, precision and recall, calibration and importance as a PNG of four panels, atomically."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    (roc, pr), (calibration, importance) = figure.subplots(2, 2)
    _curve(roc, plots["roc"], "false_positive_rate", "true_positive_rate", "ROC curve")
    roc.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    _curve(pr, plots["precision_recall"], "recall", "precision", "Precision and recall")
    _curve(calibration, plots["calibration"], "predicted", "observed", "Calibration", marker="o")
    calibration.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    top = list(plots["importance"])[:12][::-1]
    importance.barh([str(point["column"]) for point in top], [point["loss"] for point in top], color=_BLUE)
    importance.set_title("Importance (ROC AUC lost when shuffled)", loc="left", fontsize=11)
    for panel in (roc, pr, calibration, importance):
        panel.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _curve(panel: Axes, points: Points, x: str, y: str, title: str, marker: str = "") -> None:
    panel.plot([point[x] for point in points], [point[y] for point in points], color=_BLUE, linewidth=2, marker=marker)
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel(x.replace("_", " "))
    panel.set_ylabel(y.replace("_", " "))
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
