"""The example's raw table: what is known before departure, one row a flight, and the label the issue is about."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from flywheel_ml.core.contract import Contract
from flywheel_ml.data import tables
from flywheel_ml.data.validate import find_violations
from polars.testing import assert_frame_equal

from << cookiecutter.package_name >> import source

ACTUAL = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
"""Columns that are known only after the flight."""


@pytest.fixture(scope="module")
def raw() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    return source._csv("flights.csv.zip"), source._csv("weather.csv"), source._csv("planes.csv")


@pytest.fixture(scope="module")
def flights(raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
    made: pl.DataFrame = source.flights(*raw)
    return made


def test_every_flight_of_the_year_is_one_row_with_an_id_of_its_own(flights: pl.DataFrame) -> None:
    assert flights.height == 336_776
    assert flights["flight_id"].n_unique() == flights.height
    assert flights["flight_id"].null_count() == 0


def test_table_satisfies_the_contract_except_unknown_labels(flights: pl.DataFrame, contract: Contract) -> None:
    assert flights.columns == [column.name for column in contract.columns]
    labelled = tables.conform(flights, contract).drop_nulls(contract.target.name)
    assert find_violations(labelled, contract) == []


def test_only_the_label_depends_on_the_flight_itself(
    raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], flights: pl.DataFrame, contract: Contract
) -> None:
    flown, weather, planes = raw
    order = np.random.default_rng(0).permutation(flown.height)
    shuffled = source.flights(flown.with_columns(flown[name][order] for name in ACTUAL), weather, planes)
    target = contract.target.name
    assert_frame_equal(shuffled.drop(target), flights.drop(target))
    assert not shuffled[target].equals(flights[target])


def test_source_uses_no_actual_times_except_the_delay(
    raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], flights: pl.DataFrame
) -> None:
    flown, weather, planes = raw
    without = flown.drop(name for name in ACTUAL if name != "arr_delay")
    assert_frame_equal(source.flights(without, weather, planes), flights)


def test_late_means_more_than_fifteen_minutes(raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]) -> None:
    flown, weather, planes = raw
    few = flown.head(6).with_columns(pl.Series("arr_delay", [-20, 0, 15, 16, 300, None], dtype=pl.Int64))
    few = few.with_columns(pl.Series("sched_dep_time", [500, 501, 502, 503, 504, 505]), day=1, month=1)
    assert source.flights(few, weather, planes)["late"].to_list() == [False, False, False, True, True, None]


def test_cancelled_and_diverted_flights_have_no_label(
    raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], flights: pl.DataFrame
) -> None:
    flown = raw[0]
    cancelled = int(flown["dep_time"].null_count())
    diverted = int(flown.filter(pl.col("dep_time").is_not_null())["arr_delay"].null_count())
    assert (cancelled, diverted) == (8_255, 1_175)
    assert flights["late"].null_count() == cancelled + diverted
    assert int(flights["late"].sum()) == int((flown["arr_delay"] > 15).sum())


def test_duplicate_weather_or_planes_are_rejected(
    raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame],
) -> None:
    flown, weather, planes = raw[0].head(100), raw[1], raw[2]
    for twice in ((flown, pl.concat([weather, weather]), planes), (flown, weather, pl.concat([planes, planes]))):
        with pytest.raises(pl.exceptions.ComputeError, match="m:1"):
            source.flights(*twice)


def test_weather_is_of_scheduled_hour_and_departure_airport(
    raw: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame], flights: pl.DataFrame
) -> None:
    flown, weather, _ = raw
    first = flights.row(0, named=True)
    assert (first["flight_id"], first["scheduled_departure"]) == ("2013-01-01-UA-1545-EWR", datetime(2013, 1, 1, 5, 15))
    assert (first["carrier"], first["dest"], first["plane_year"]) == ("UA", "IAH", 1999)
    hour = flown.row(0, named=True)["time_hour"]
    there = weather.filter((pl.col("origin") == "EWR") & (pl.col("time_hour") == hour))
    assert first["temp"] == there["temp"].item()
    assert flights["temp"].null_count() < 0.01 * flights.height


@pytest.mark.parametrize(
    ("clock", "minutes"), [(0, 0), (1, 1), (59, 59), (100, 60), (1545, 945), (2359, 1439), (2400, 1440)]
)
def test_clock_times_are_read_as_hours_and_minutes(clock: int, minutes: int) -> None:
    assert pl.DataFrame({"c": [clock]}).select(source._clock("c")).item() == minutes
