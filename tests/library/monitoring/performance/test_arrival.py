"""Labels that arrive late or for some rows only are reported; both caution and never decide."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring import quality, report_quality
from flywheel_ml.monitoring.performance.arrival import assess_arrival
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window
from library.helpers.windows import write_scored_file


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory, alike: pl.DataFrame, bundle: Bundle) -> Window:
    return from_file(write_scored_file(alike, bundle, tmp_path_factory.mktemp("w") / "scored.parquet"), bundle)


def keep(window: Window, rows: np.ndarray) -> Window:
    """The window with the labels of these rows only."""
    parts = {name: getattr(window, name)[rows] for name in ("truth", "output", "delays", "labelled_variants")}
    return replace(window, slices={}, **parts)


def test_coverage_has_a_wilson_interval(window: Window, params: Params) -> None:
    found = assess_arrival(keep(window, np.arange(300)), "binary", params.monitor)
    assert (found.answered, found.labelled, found.coverage) == (1500, 300, 0.2)
    assert (round(found.low, 3), round(found.high, 3)) == (0.181, 0.221)


def test_delays_are_reported_as_quantiles(window: Window, params: Params) -> None:
    delayed = replace(window, delays=np.where(np.arange(1500) < 1000, 3600.0 * np.arange(1500), np.nan))
    found = assess_arrival(delayed, "binary", params.monitor)
    assert found.timed == 1000
    assert found.delays == pytest.approx({"50%": 499.5, "90%": 899.1, "99%": 989.01, "100%": 999.0})
    assert assess_arrival(window, "binary", params.monitor).delays == {}


def test_labels_of_low_scores_only_are_a_caution(window: Window, bundle: Bundle, params: Params) -> None:
    lowest = keep(window, np.argsort(window.output[:, 1])[:500])
    found = assess_arrival(lowest, "binary", params.monitor)
    assert found.bias is not None
    assert found.bias.biased
    assert found.bias.unlabelled == 1000
    assert "Labelled rows have other scores than the 1,000 rows without a label" in found.caution
    assessed = quality.assess(lowest, bundle.manifest, params.monitor, params.evaluate)
    assert found.caution in assessed.cautions


def test_random_labels_are_rarely_a_caution(window: Window, params: Params) -> None:
    rng = np.random.default_rng(3)
    found = [
        assess_arrival(keep(window, rng.permutation(1500)[:500]), "binary", params.monitor).caution for _ in range(200)
    ]
    assert sum(map(bool, found)) <= 6


def test_few_unlabelled_rows_are_not_compared(window: Window, params: Params) -> None:
    assert assess_arrival(keep(window, np.arange(1450)), "binary", params.monitor).bias is None


def test_window_without_rows_has_no_coverage(window: Window, params: Params) -> None:
    none = replace(keep(window, np.arange(0)), rows=0, degraded=0)
    found = assess_arrival(none, "binary", params.monitor)
    assert (found.answered, found.low, found.high) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("hours", "text"), [(72, "3 days"), (5, "5 hours"), (0.5, "30 minutes"), (0.01, "36 seconds"), (-1, "0 seconds")]
)
def test_duration_is_formatted_in_its_natural_unit(hours: float, text: str) -> None:
    assert report_quality.format_hours(hours) == text
