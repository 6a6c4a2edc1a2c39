"""Ingest keeps rows that are in time and labelled, and counts the rows that it drops."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from flywheel_ml.core.contract import Contract
from flywheel_ml.data.ingest import ingest
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError
from library.helpers.orders import SHOP

FIRST = datetime(2020, 1, 1)


def test_ingest_drops_and_counts_late_and_unlabelled_rows(orders: pl.DataFrame, shop: Contract) -> None:
    raw = orders.with_columns(
        returned=pl.when(pl.col("order").is_in(["o003", "o004", "o090"])).then(None).otherwise(pl.col("returned"))
    )
    done = ingest(raw, shop, FIRST + timedelta(days=50))
    assert (done.later, done.unlabelled, done.table.height) == (50, 2, 48)
    assert done.table["returned"].null_count() == 0


def test_until_is_exclusive(orders: pl.DataFrame, shop: Contract) -> None:
    tied = orders.with_columns(pl.lit(FIRST).alias("placed"))
    with pytest.raises(
        DataError, match=r"no row is left of 100: 100 are not before data.until \(2020-01-01 00:00:00\)"
    ):
        ingest(tied, shop, FIRST)
    assert ingest(tied, shop, FIRST + timedelta(microseconds=1)).table.height == 100


def test_until_with_offset_is_converted_to_the_column_s_zone(orders: pl.DataFrame) -> None:
    placed = {"name": "placed", "type": "datetime", "role": "time", "time_zone": "America/New_York"}
    columns = [placed if column["name"] == "placed" else column for column in SHOP["columns"]]
    contract = config_model.parse({**SHOP, "columns": columns}, Contract, "contract.yaml")
    for hour, rows in ((5, 2), (6, 3)):
        assert ingest(orders, contract, datetime(2020, 1, 3, hour, tzinfo=UTC)).table.height == rows


def test_a_table_without_any_label_is_rejected(orders: pl.DataFrame, shop: Contract) -> None:
    with pytest.raises(DataError, match=r"100 have no label in 'returned'"):
        ingest(orders.with_columns(pl.lit(None, dtype=pl.Boolean).alias("returned")), shop, None)


def test_the_order_of_the_raw_rows_changes_nothing(orders: pl.DataFrame, shop: Contract) -> None:
    tied = orders.with_columns(pl.col("placed").dt.truncate("1mo"))
    expected = ingest(tied, shop, None).table
    for seed in range(3):
        shuffled = tied.sample(fraction=1, shuffle=True, seed=seed)
        assert_frame_equal(ingest(shuffled, shop, None).table, expected)


def test_rows_without_a_time_are_passed_on_to_be_reported(orders: pl.DataFrame, shop: Contract) -> None:
    raw = orders.with_columns(pl.when(pl.col("order") != "o007").then(pl.col("placed")).alias("placed"))
    assert ingest(raw, shop, FIRST + timedelta(days=10)).table["placed"].null_count() == 1


@pytest.mark.parametrize("column", ["placed", "order", "returned", "items"])
def test_ingest_keeps_missing_and_mistyped_columns(orders: pl.DataFrame, shop: Contract, column: str) -> None:
    assert ingest(orders.drop(column), shop, FIRST + timedelta(days=10)).table.width == orders.width - 1
    mistyped = orders.with_columns(pl.lit("?").alias(column))
    assert ingest(mistyped, shop, FIRST + timedelta(days=10)).table.schema[column] == pl.String


def test_until_without_a_time_column_is_rejected(orders: pl.DataFrame) -> None:
    columns = [column for column in SHOP["columns"] if column["name"] != "placed"]
    timeless = config_model.parse({**SHOP, "columns": columns}, Contract, "contract.yaml")
    with pytest.raises(ConfigError, match=r"data.until needs a column with role time"):
        ingest(orders.drop("placed"), timeless, FIRST)
    assert ingest(orders.drop("placed"), timeless, None).table.height == 100
