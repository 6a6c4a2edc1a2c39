"""A span of the raw table includes its start and excludes its end."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.data.window import cut_span, export_span
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError
from library.helpers.orders import SHOP

FIRST = datetime(2020, 1, 1)


def test_span_includes_its_start_and_excludes_its_end(orders: pl.DataFrame, shop: Contract) -> None:
    found = cut_span(orders, shop, FIRST + timedelta(days=10), FIRST + timedelta(days=20))
    assert_frame_equal(found, orders[10:20])


def test_an_open_span_reaches_to_the_end_of_the_table(orders: pl.DataFrame, shop: Contract) -> None:
    assert cut_span(orders, shop, FIRST + timedelta(days=95), None).height == 5
    assert cut_span(orders, shop, None, FIRST + timedelta(days=5)).height == 5


def test_spans_that_meet_share_no_row_and_lose_none(orders: pl.DataFrame, shop: Contract) -> None:
    middle = FIRST + timedelta(days=33)
    assert_frame_equal(pl.concat([cut_span(orders, shop, None, middle), cut_span(orders, shop, middle, None)]), orders)


def test_span_with_offsets_is_converted_to_the_column_s_zone(orders: pl.DataFrame, shop: Contract) -> None:
    placed = {"name": "placed", "type": "datetime", "role": "time", "time_zone": "Europe/Berlin"}
    columns = [placed if column["name"] == "placed" else column for column in SHOP["columns"]]
    berlin = config_model.parse({**SHOP, "columns": columns}, Contract, "contract.yaml")
    assert cut_span(orders, berlin, datetime(2020, 1, 1, 23, tzinfo=UTC), None).height == 99
    assert cut_span(orders, berlin, None, datetime(2020, 1, 2, 1, tzinfo=timezone(timedelta(hours=2)))).height == 1
    with pytest.raises(ConfigError, match=r"2020-01-02T00:00:00\+00:00 must not have a UTC offset: .*add `time_zone`"):
        cut_span(orders, shop, None, datetime(2020, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize(("since", "until"), [(FIRST, FIRST), (None, datetime(2012, 1, 1)), (FIRST, FIRST.min)])
def test_a_span_that_ends_before_it_begins_is_rejected(
    tmp_path: Path, contract: Contract, params: Params, since: datetime | None, until: datetime
) -> None:
    params = params.model_copy(update={"data": params.data.model_copy(update={"until": datetime(2013, 1, 1)})})
    with pytest.raises(ConfigError, match=r"--since is .* and --until .*; --since must be the earlier one"):
        export_span(tmp_path / "cut.parquet", contract, params, since, until)


def test_an_empty_span_is_rejected_with_what_the_table_spans(orders: pl.DataFrame, shop: Contract) -> None:
    with pytest.raises(DataError, match=r"no row is between 2030.*; the table spans 2020-01-01 00:00:00 to 2020-04-09"):
        cut_span(orders, shop, datetime(2030, 1, 1), None)


def test_table_or_contract_without_timestamps_is_rejected(orders: pl.DataFrame, shop: Contract) -> None:
    columns = [column for column in SHOP["columns"] if column["name"] != "placed"]
    timeless = config_model.parse({**SHOP, "columns": columns}, Contract, "contract.yaml")
    with pytest.raises(ConfigError, match=r"no column has role time"):
        cut_span(orders, timeless, FIRST, None)
    for other in (orders.drop("placed"), orders.with_columns(pl.lit("?").alias("placed"))):
        with pytest.raises(DataError, match=r"no timestamps in 'placed'"):
            cut_span(other, shop, FIRST, None)


def test_an_export_begins_at_until_and_is_a_month_long(
    tmp_path: Path, orders: pl.DataFrame, shop: Contract, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables.write(orders, tmp_path / "raw.parquet")
    data = params.data.model_copy(update={"raw": Path("raw.parquet"), "until": datetime(2020, 2, 1)})
    params = params.model_copy(update={"data": data})
    assert export_span(Path("out/month.parquet"), shop, params, None, None) == 29
    assert_frame_equal(tables.read(Path("out/month.parquet"), shop), orders[31:60])
    assert export_span(Path("out/day.parquet"), shop, params, FIRST, FIRST + timedelta(days=1)) == 1
