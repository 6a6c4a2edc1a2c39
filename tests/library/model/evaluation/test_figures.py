"""The evaluation's picture is a picture, the same one for the same points, and written whole."""

from pathlib import Path

from flywheel_ml.model.evaluation import figures

NAMES = ("a $name_ with signs", r"from $\nowhere to $there", "leaf 🌸", "葉")
CURVE = [{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}]
PLOTS: dict[str, figures.Points] = {
    "roc": [{"false_positive_rate": at, "true_positive_rate": at} for at in (0.0, 1.0)],
    "precision_recall": [{"recall": at, "precision": 1 - at} for at in (0.0, 1.0)],
    "calibration": [{"predicted": at, "observed": at} for at in (0.1, 0.9)],
    "importance": [{"column": name, "loss": 0.1} for name in NAMES],  # type: ignore[dict-item]
}


def test_the_picture_is_a_png_and_equal_for_equal_points(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.draw_evaluation(tmp_path / name, "title: test rows", PLOTS)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
