"""Quality follows the metrics, with calibrated intervals, and is decided only on enough labels."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import metrics
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import quality
from flywheel_ml.monitoring.performance import intervals
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window
from library.helpers.windows import write_scored_file

ONE_ERROR = 0.682689492137086
"""Confidence of an interval that reaches one standard error to either side."""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory, alike: pl.DataFrame, bundle: Bundle, params: Params) -> Window:
    return from_file(
        write_scored_file(alike, bundle, tmp_path_factory.mktemp("w") / "scored.parquet"),
        bundle,
        params.evaluate.slices,
    )


def assess(window: Window, bundle: Bundle, params: Params) -> quality.Quality:
    return quality.assess(window, bundle.manifest, params.monitor, params.evaluate)


def cut(window: Window, rows: int) -> Window:
    """The window with the labels of its first rows only."""
    slices = {name: values[:rows] for name, values in window.slices.items()}
    return replace(window, truth=window.truth[:rows], output=window.output[:rows], slices=slices)


def test_window_metrics_match_evaluation(window: Window, bundle: Bundle, params: Params) -> None:
    found = assess(window, bundle, params)
    costs = params.evaluate.costs.model_dump()
    expected = metrics.compute_metrics(
        "binary", window.truth, window.output, metrics.DecisionRule(bundle.manifest.threshold or 0.0, **costs)
    )
    assert {name: measure.value for name, measure in found.measures.items()} == expected
    assert {name: m.reference for name, m in found.measures.items()} == bundle.manifest.metrics["test"]
    assert found.coverage == 1.0


def test_rows_like_the_test_rows_are_ok(window: Window, bundle: Bundle, params: Params) -> None:
    assert assess(window, bundle, params).verdict == "ok"


def test_uninformative_scores_are_degraded(window: Window, bundle: Bundle, params: Params) -> None:
    shuffled = np.random.default_rng(0).permutation(window.truth)
    found = assess(replace(window, truth=shuffled), bundle, params)
    assert found.verdict == "degraded"
    assert not found.slices or any(part.worse for part in found.slices)


@pytest.mark.parametrize("labels", [0, 1, 50, 199])
def test_too_few_labels_are_insufficient_data(window: Window, bundle: Bundle, params: Params, labels: int) -> None:
    found = assess(cut(window, labels), bundle, params)
    assert found.verdict == "insufficient data"
    assert f"{labels} rows" in found.reason or "no row" in found.reason


def test_labels_of_one_class_are_insufficient_data(window: Window, bundle: Bundle, params: Params) -> None:
    found = assess(replace(window, truth=np.zeros_like(window.truth)), bundle, params)
    assert found.verdict == "insufficient data"
    assert "roc_auc" not in found.measures


def test_few_labels_give_a_caution(window: Window, bundle: Bundle, params: Params) -> None:
    assert len(assess(cut(window, 300), bundle, params).cautions) == 2
    assert assess(window, bundle, params).cautions == ()


def test_slices_add_up_and_have_their_reference(window: Window, bundle: Bundle, params: Params) -> None:
    found = assess(window, bundle, params)
    for name in window.slices:
        assert sum(part.rows for part in found.slices if part.column == name) == 1500
    known = {(part.column, part.value): part.metrics.get("roc_auc") for part in bundle.manifest.slices}
    assert all(part.reference == known[part.column, part.value] for part in found.slices)


def test_roc_auc_interval_has_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((400, 400)) < 0.3
    scores = rng.normal(size=(400, 400)) + labels
    found = [intervals.delong_interval(y, s, 0.95) for y, s in zip(labels, scores, strict=True)]
    # Normal scores one standard deviation apart: the area is Φ(1 / √2).
    covered = np.mean([interval.low <= 0.7602 <= interval.high for interval in found])
    assert 0.92 <= covered <= 0.98


def test_delong_agrees_with_bootstrap_and_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(800) < 0.3
    scores = (1 / (1 + np.exp(-rng.normal(size=800) - labels))).round(2)
    found = intervals.delong_interval(labels, scores, ONE_ERROR)
    assert found.value == pytest.approx(metrics.compute_binary_metrics(labels, scores, 0.5)["roc_auc"])
    picks = rng.integers(0, 800, size=(300, 800))
    again = [intervals.delong_interval(labels[pick], scores[pick], ONE_ERROR).value for pick in picks]
    assert (found.high - found.low) / 2 == pytest.approx(np.std(again), rel=0.15)


def test_wilson_interval_matches_the_published_one() -> None:
    # Newcombe 1998, "Two-Sided Confidence Intervals for the Single Proportion", Table I: 81 of 263.
    found = intervals.wilson_interval(81, 263, 0.95)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert intervals.wilson_interval(0, 20, 0.95).low == 0.0
    assert intervals.wilson_interval(20, 20, 0.95).high == 1.0
