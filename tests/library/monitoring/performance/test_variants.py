"""Every variant of an experiment is measured with its own model's rows, labels joined by id or by entity."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.monitoring.performance.variants import VariantQuality, measure_others, measure_window
from flywheel_ml.monitoring.sources.log_window import Log, Span
from flywheel_ml.monitoring.sources.logged_rows import from_log
from flywheel_ml.monitoring.sources.profile_store import ProfileStore
from flywheel_ml.monitoring.sources.profiling import update_profiles
from flywheel_ml.monitoring.window import merge
from flywheel_ml.prediction_log import SHADOW, EntityOutcome, Outcome, Prediction, Reader, Row, Writer

START_US = 1_400_000_000_000_000
SECOND_US = 1_000_000
OTHER = "e" * 64


def build_rows(digest: str, variant: str, first: int, quality: float) -> list[Row]:
    """200 predictions, of which 150 have a label that arrives an hour later; half of these join by entity."""
    rng = np.random.default_rng(first)
    rows: list[Row] = []
    for at in range(first, first + 200):
        label = bool(rng.random() < 0.5)
        score = float(np.clip(rng.normal(0.5 + quality * (label - 0.5), 0.1), 0, 1))
        made, name = START_US + at * SECOND_US, f"{at:032d}"
        version = "2" if digest == OTHER else "1"
        rows.append(
            Prediction(name, made, f"e{at}", None, variant, version, digest, "{}", "{}", score, 9, at % 50 == 0)
        )
        if at < first + 150:
            text, arrived = str(label).lower(), made + 3600 * SECOND_US
            by_id = at % 2 and variant != SHADOW
            rows.append(
                Outcome(name, made, text, arrived) if by_id else EntityOutcome(f"e{at}", made + 1, text, arrived)
            )
    return rows


@pytest.fixture
def reader(tmp_path: Path, bundle: Bundle) -> Reader:
    with Writer(str(tmp_path), "serve") as writer:
        writer.append(build_rows(bundle.digest, "champion", 0, 0.1)).result(10)
        writer.append(build_rows(OTHER, "challenger", 1000, 0.4)).result(10)
        writer.append(build_rows(OTHER, SHADOW, 2000, 0.0)).result(10)
    return Reader(str(tmp_path))


def test_other_variants_are_measured_by_their_own_rows(reader: Reader, bundle: Bundle) -> None:
    challenger, shadow = measure_others(Log(reader), bundle.contract, bundle.digest, Span(0, 2 * START_US), 0.95)
    assert (challenger.variant, challenger.model_version, challenger.rows, challenger.labelled) == (
        "challenger",
        "2",
        196,
        147,
    )
    assert (shadow.variant, shadow.labelled) == (SHADOW, 147)
    assert challenger.metric is not None
    assert shadow.metric is not None
    assert challenger.metric[1] > 0.9
    assert shadow.metric[1] < 0.5 < shadow.metric[2]
    share, low, high = challenger.coverage
    assert low < share == 0.75 < high


def test_span_without_rows_has_no_variants(reader: Reader, bundle: Bundle) -> None:
    assert measure_others(Log(reader), bundle.contract, bundle.digest, Span(2 * START_US, 3 * START_US), 0.95) == []


def test_window_has_the_variant_and_the_delays_of_its_own_model(reader: Reader, bundle: Bundle) -> None:
    found = from_log(reader, bundle, model_version="1", model_digest=bundle.digest)
    (mine,) = measure_window(found, "binary", 0.95)
    assert isinstance(mine, VariantQuality)
    assert (mine.variant, mine.model_version, mine.rows, mine.labelled) == ("champion", "1", 196, 147)
    assert set(found.delays.tolist()) == {3600.0}
    parts = [
        from_log(
            reader, bundle, (), START_US + a * SECOND_US, START_US + b * SECOND_US, "1", model_digest=bundle.digest
        )
        for a, b in ((0, 60), (60, 10_000))
    ]
    assert list(measure_window(merge(parts), "binary", 0.95)) == [mine]


def test_rows_are_counted_alike_with_and_without_profiles(reader: Reader, bundle: Bundle, tmp_path: Path) -> None:
    span = Span(START_US + 1, START_US + 7200 * SECOND_US)
    expected = measure_others(Log(reader), bundle.contract, bundle.digest, span, 0.95)
    assert [one.rows for one in expected] == [196, 196]
    with ProfileStore(str(tmp_path)) as store:
        update_profiles(reader, store, lambda _: None, START_US + 10 * 3600 * SECOND_US)
        assert store.count_hours()
        assert measure_others(Log(reader, store), bundle.contract, bundle.digest, span, 0.95) == expected


@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_variant_without_labels_has_rows_and_no_metric(tmp_path: Path, kind: Literal["boolean", "float"]) -> None:
    columns = (Column(name="x", type="float"), Column(name="y", type=kind, role="target"))
    with Writer(str(tmp_path), "serve") as writer:
        rows = build_rows(OTHER, "challenger", 0, 0.1)
        writer.append([row for row in rows if isinstance(row, Prediction)]).result(10)
    log, contract = Log(Reader(str(tmp_path))), Contract(name="t", columns=columns)
    (found,) = measure_others(log, contract, "f" * 64, Span(0, 2 * START_US), 0.95)
    assert (found.rows, found.labelled) == (196, 0)


def test_variant_of_another_task_or_without_digest_is_not_measured(tmp_path: Path) -> None:
    columns = (Column(name="x", type="float"), Column(name="y", type="float", role="target"))
    made = Prediction("1" * 32, START_US, None, None, "challenger", "2", OTHER, "{}", "{}", 0.5, 9, False)
    with Writer(str(tmp_path), "serve") as writer:
        writer.append([made, Outcome(made.id, START_US, "1.5", START_US)]).result(10)
        unnamed = made._replace(id="2" * 32, model_digest=None)
        writer.append([unnamed, Outcome(unnamed.id, START_US, "1.5", START_US)]).result(10)
    log, contract = Log(Reader(str(tmp_path))), Contract(name="t", columns=columns)
    (found,) = measure_others(log, contract, "f" * 64, Span(0, 2 * START_US), 0.95)
    assert (found.rows, found.labelled) == (1, 0)
