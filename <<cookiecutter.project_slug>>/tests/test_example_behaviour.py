"""What a model of the example must have understood of flights."""

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.testing.bundles import make_bundle

from << cookiecutter.package_name >>.project import PROJECT


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory, contract: Contract) -> pl.DataFrame:
    """Every tenth flight of the first half of the year."""
    path = tmp_path_factory.mktemp("raw") / "flights.parquet"
    PROJECT.fetch(path)
    rows = tables.read(path, contract).drop_nulls(contract.target.name)
    return rows.filter(pl.col("scheduled_departure") < datetime(2013, 7, 1)).gather_every(10)


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, flights: pl.DataFrame, contract: Contract, params: Params
) -> Bundle:
    path = tmp_path_factory.mktemp("flights") / "bundle"
    made = make_bundle(path, flights, contract, params, PROJECT.features)
    return Bundle.open(made, features=PROJECT.features)


@pytest.fixture(scope="module")
def score(opened: Bundle, flights: pl.DataFrame, contract: Contract) -> Callable[..., float]:
    """Mean score of some flights with columns set to other values."""

    def call(**values: object) -> float:
        bent = flights.head(2000).with_columns(pl.lit(value).alias(name) for name, value in values.items())
        return float(opened.predict(tables.to_columns(tables.conform(bent, contract), contract.inputs)).scores.mean())

    return call


def test_it_beats_the_prior_and_a_linear_model(opened: Bundle) -> None:
    metrics = opened.manifest.metrics
    assert metrics["test"]["roc_auc"] > 0.6
    assert metrics["test"]["log_loss"] < metrics["prior"]["log_loss"]
    assert metrics["test"]["roc_auc"] > metrics["linear"]["roc_auc"] - 0.01


def test_the_later_in_the_day_the_likelier_a_delay(opened: Bundle, flights: pl.DataFrame, contract: Contract) -> None:
    """Direction: delays pile up over the day."""
    day = pl.col("scheduled_departure").dt.truncate("1d")
    means = []
    for hour in (6, 12, 19):
        bent = flights.with_columns(day + timedelta(hours=hour))
        means.append(opened.predict(tables.to_columns(bent, contract.inputs)).scores.mean())
    assert means == sorted(means)


@pytest.mark.parametrize(
    ("column", "fair", "foul"), [("visib", 10.0, 0.5), ("precip", 0.0, 0.3), ("humid", 40.0, 95.0)]
)
def test_foul_weather_makes_a_delay_likelier(
    score: Callable[..., float], column: str, fair: float, foul: float
) -> None:
    """Direction."""
    assert score(**{column: foul}) > score(**{column: fair})


def test_the_flights_own_number_does_not_matter(opened: Bundle, flights: pl.DataFrame, contract: Contract) -> None:
    """Invariance."""
    renamed = flights.with_columns(pl.lit("another").alias("flight_id"))
    first, second = (opened.predict(tables.to_columns(rows, contract.inputs)) for rows in (flights, renamed))
    np.testing.assert_array_equal(first.output, second.output)


def test_a_flight_without_weather_or_plane_data_is_still_answered(
    opened: Bundle, flights: pl.DataFrame, contract: Contract
) -> None:
    """Minimum functionality."""
    gaps = [column.name for column in contract.inputs if column.nullable]
    bare = flights.head(100).with_columns(pl.lit(None, dtype=flights.schema[name]).alias(name) for name in gaps)
    scores = opened.predict(tables.to_columns(bare, contract.inputs)).scores
    assert ((scores > 0) & (scores < 1)).all()
    assert np.ptp(scores) > 0


def test_the_bundle_names_the_feature_it_derived(opened: Bundle) -> None:
    assert "plane_age" in bundle.verify(opened.path).derived
