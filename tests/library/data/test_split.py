"""The split by time or hash keeps every row once and leaks nothing into training."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from sklearn.metrics import roc_auc_score

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import SplitParams
from flywheel_ml.data.split import count_test_rows_in_train, split
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError
from library.helpers.orders import SHOP

FIRST = datetime(2020, 1, 1)
DAYS = SplitParams(validation_days=20, test_days=10)


def test_time_split_takes_test_then_validation_from_the_end(orders: pl.DataFrame, shop: Contract) -> None:
    parts = split(orders, shop, DAYS, FIRST + timedelta(days=100))
    assert {name: part.height for name, part in parts.items()} == {"train": 70, "validation": 20, "test": 10}
    assert list(parts) == ["train", "validation", "test"]
    assert_frame_equal(pl.concat(parts.values()), orders)


def test_a_row_at_a_boundary_belongs_to_the_later_part(orders: pl.DataFrame, shop: Contract) -> None:
    parts = split(orders, shop, DAYS, FIRST + timedelta(days=100))
    assert parts["test"]["placed"].min() == FIRST + timedelta(days=90)
    assert parts["validation"]["placed"].min() == FIRST + timedelta(days=70)


def test_days_are_whole_whatever_the_hour_of_the_last_row(orders: pl.DataFrame, shop: Contract) -> None:
    evening = orders.with_columns(pl.col("placed") + timedelta(hours=22))
    parts = split(evening, shop, DAYS, None)
    assert {name: part.height for name, part in parts.items()} == {"train": 70, "validation": 20, "test": 10}


def test_until_may_be_within_a_day(orders: pl.DataFrame, shop: Contract) -> None:
    parts = split(orders, shop, DAYS, FIRST + timedelta(days=99, hours=6))
    assert parts["test"]["placed"].min() == FIRST + timedelta(days=90)
    assert {name: part.height for name, part in parts.items()} == {"train": 70, "validation": 20, "test": 10}


def test_row_in_the_year_9999_is_reported_with_its_date(orders: pl.DataFrame, shop: Contract) -> None:
    far = pl.concat([orders.head(99), orders.tail(1).with_columns(pl.lit(datetime(9999, 12, 31)).alias("placed"))])
    with pytest.raises(
        DataError, match=r"the validation part is empty: the table has 100 rows from 2020-01-01 .* to 9999-12-31"
    ):
        split(far, shop, DAYS, None)


def test_rows_with_equal_timestamps_stay_together(orders: pl.DataFrame, shop: Contract) -> None:
    tied = orders.with_columns(pl.col("placed").dt.truncate("10d"))
    parts = split(tied, shop, DAYS, None)
    seen = [set(part["placed"]) for part in parts.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert sum(part.height for part in parts.values()) == 100


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 60 * 24), min_size=3, max_size=40),
    st.integers(1, 20),
    st.integers(1, 20),
    st.none() | st.integers(0, 70),
)
def test_time_split_keeps_every_row_once_and_in_order(
    shop: Contract, hours: list[int], validation_days: int, test_days: int, until: int | None
) -> None:
    end = FIRST + timedelta(days=until) if until is not None else None
    moments = [moment for hour in hours if (moment := FIRST + timedelta(hours=hour)) < (end or datetime.max)]
    table = pl.DataFrame({"placed": pl.Series(sorted(moments), dtype=pl.Datetime("us"))}).with_row_index()
    if table.is_empty():
        return
    try:
        parts = split(table, shop, SplitParams(validation_days=validation_days, test_days=test_days), end)
    except DataError:
        return
    assert_frame_equal(pl.concat(parts.values()), table)
    spans = [part["placed"].to_list() for part in parts.values()]
    assert max(spans[0]) < min(spans[1])
    assert max(spans[1]) < min(spans[2])
    assert max(spans[2]) - min(spans[2]) < timedelta(days=test_days)


def test_table_that_ends_before_until_is_split_from_its_end(orders: pl.DataFrame, shop: Contract) -> None:
    late = split(orders, shop, DAYS, FIRST + timedelta(days=1000))
    assert {name: part.height for name, part in late.items()} == {"train": 70, "validation": 20, "test": 10}


@pytest.mark.parametrize(("validation", "test", "empty"), [(95, 10, "train"), (1, 100, "validation|train")])
def test_an_empty_part_is_rejected_with_what_to_lower(
    orders: pl.DataFrame, shop: Contract, validation: int, test: int, empty: str
) -> None:
    days = SplitParams(validation_days=validation, test_days=test)
    with pytest.raises(
        DataError, match=rf"the ({empty}) part is empty: the table has 100 rows from 2020-01-01 .*; change split"
    ):
        split(orders, shop, days, None)


def test_a_gap_that_empties_the_validation_part_is_rejected(orders: pl.DataFrame, shop: Contract) -> None:
    gap = orders.filter(~pl.col("placed").is_between(FIRST + timedelta(days=60), FIRST + timedelta(days=95)))
    with pytest.raises(DataError, match=r"the validation part is empty"):
        split(gap, shop, DAYS, None)


def test_train_duplicates_are_counted_ignoring_time(orders: pl.DataFrame, shop: Contract) -> None:
    parts = split(orders, shop, DAYS, FIRST + timedelta(days=100))
    assert count_test_rows_in_train(parts, shop) == 0
    fresh = parts["test"].head(3)
    again = parts["train"].head(3).with_columns(fresh["order"], fresh["placed"], buyer=pl.lit("somebody else"))
    assert count_test_rows_in_train({**parts, "test": pl.concat([parts["test"], again])}, shop) == 3
    turned = again.with_columns(~pl.col("returned"))
    assert count_test_rows_in_train({**parts, "test": pl.concat([parts["test"], turned])}, shop) == 0


def test_a_contract_without_time_is_rejected(orders: pl.DataFrame) -> None:
    columns = [column for column in SHOP["columns"] if column["name"] != "placed"]
    timeless = config_model.parse({**SHOP, "columns": columns}, Contract, "contract.yaml")
    with pytest.raises(ConfigError, match=r"the split is by time, and no column has role time"):
        split(orders, timeless, DAYS, None)


HASHED = SplitParams(by="hash", validation_share=0.2, test_share=0.2)


def contract_of(*columns: dict[str, Any]) -> Contract:
    target = {"name": "kind", "type": "string", "role": "target", "categories": ["rare", "common"]}
    return config_model.parse({"name": "things", "columns": [*columns, target]}, Contract, "contract.yaml")


def things(rows: int) -> pl.DataFrame:
    at = pl.int_range(rows, eager=True)
    return pl.DataFrame(
        {
            "x": at.cast(pl.Float64),
            "who": (at % 40).cast(pl.String),
            "kind": (at % 20 == 0).replace_strict({True: "rare", False: "common"}),
        }
    )


def test_hash_split_keeps_class_shares_and_every_row() -> None:
    table = things(1000)
    parts = split(table, contract_of({"name": "x", "type": "float"}, {"name": "who", "type": "string"}), HASHED, None)
    assert_frame_equal(pl.concat(parts.values()).sort("x"), table)
    rare = {name: part.filter(pl.col("kind") == "rare").height for name, part in parts.items()}
    assert rare == {"train": 30, "validation": 10, "test": 10}


def test_hash_split_ignores_row_order() -> None:
    contract = contract_of({"name": "x", "type": "float"}, {"name": "who", "type": "string"})
    table = things(400)
    one = split(table, contract, HASHED, None)
    other = split(table.reverse(), contract, HASHED, None)
    assert {name: set(part["x"]) for name, part in one.items()} == {
        name: set(part["x"]) for name, part in other.items()
    }


def test_by_hash_equal_rows_stay_together() -> None:
    contract = contract_of({"name": "x", "type": "float"}, {"name": "who", "type": "string"})
    table = pl.concat([things(200)] * 3)
    seen = [set(part["x"]) for part in split(table, contract, HASHED, None).values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 200


def coarse(rows: int, seed: int, levels: tuple[int, ...]) -> pl.DataFrame:
    """Few columns of few values, which many rows share; the class depends on the values, and on chance."""
    rng = np.random.default_rng(seed)
    columns = {f"c{at}": rng.integers(0, count, rows) for at, count in enumerate(levels)}
    strength = sum(rng.normal(0, 1, count)[columns[f"c{at}"]] for at, count in enumerate(levels))
    kind = np.where(rng.random(rows) < 1 / (1 + np.exp(-strength)), "rare", "common")
    return pl.DataFrame({**{name: values.astype(str) for name, values in columns.items()}, "kind": kind})


def auc_of_the_rates(parts: dict[str, pl.DataFrame]) -> float:
    """ROC AUC in the test of each combination's rate in training."""
    names = [name for name in parts["test"].columns if name != "kind"]
    rates = parts["train"].group_by(names).agg(rate=(pl.col("kind") == "rare").mean())
    judged = parts["test"].join(rates, on=names, how="left").with_columns(pl.col("rate").fill_null(0.5))
    return float(roc_auc_score(judged["kind"] == "rare", judged["rate"]))


@pytest.mark.parametrize("levels", [(2, 6), (2,) * 5, (5, 5, 5)])
def test_hash_split_distributes_coincidentally_equal_rows(levels: tuple[int, ...]) -> None:
    contract = contract_of(*({"name": f"c{at}", "type": "string"} for at in range(len(levels))))
    by_hash, by_chance = [], []
    for seed in range(12):
        table = coarse(2000, seed, levels)
        by_hash.append(auc_of_the_rates(split(table, contract, HASHED, None)))
        drawn = pl.Series(np.random.default_rng(100 + seed).random(2000))
        by_chance.append(auc_of_the_rates({"train": table.filter(drawn < 0.6), "test": table.filter(drawn > 0.8)}))
    assert np.mean(by_hash) == pytest.approx(np.mean(by_chance), abs=0.02)


def test_hash_split_ignores_the_target() -> None:
    contract = contract_of({"name": "c0", "type": "string"}, {"name": "c1", "type": "string"})
    table = coarse(2000, 1, (2, 6)).with_row_index()
    other = {"rare": "common", "common": "rare"}
    places = []
    for labels in (table["kind"], table["kind"].replace_strict(other)):
        parts = split(table.with_columns(labels), contract, HASHED, None)
        places.append({name: set(part["index"]) for name, part in parts.items()})
    assert places[0] == places[1]


def test_hash_split_keeps_copies_together() -> None:
    ignored = {"name": "note", "type": "string", "role": "ignored"}
    contract = contract_of({"name": "x", "type": "float"}, {"name": "who", "type": "string"}, ignored)
    copied = pl.concat([things(500).with_columns(note=pl.lit("first")), things(500).with_columns(note=pl.lit("again"))])
    few = (pl.int_range(pl.len()) % 125 == 3) & (pl.col("note") == "again")
    turned = copied.with_columns(kind=pl.when(few).then(pl.lit("rare")).otherwise("kind"))
    seen = [set(part["x"]) for part in split(turned, contract, HASHED, None).values()]
    assert sum(map(len, seen)) <= 500 + 2


def test_hash_split_keeps_rows_in_place_when_rows_are_added() -> None:
    contract = contract_of(*({"name": f"c{at}", "type": "string"} for at in range(3)))
    table = coarse(3000, 2, (5, 5, 5)).with_row_index()
    before, after = (
        {at: name for name, part in split(rows, contract, HASHED, None).items() for at in part["index"]}
        for rows in (table.head(2400), table)
    )
    # Each class has its edges where its rows are: a few of those next to one move.
    assert np.mean([after[at] == name for at, name in before.items()]) > 0.96


def test_hash_split_keeps_groups_together_when_rows_are_added() -> None:
    contract = contract_of({"name": "x", "type": "float"}, {"name": "who", "type": "string"})
    grouped = HASHED.model_copy(update={"group": "who"})
    before, after = (
        {who: name for name, part in split(table, contract, grouped, None).items() for who in part["who"]}
        for table in (
            things(400),
            pl.concat([things(400), things(800).with_columns(("1" + pl.col("who")).alias("who"))]),
        )
    )
    assert len(before) == 40
    assert {who: after[who] for who in before} == before
    parts = split(things(400), contract, grouped, None)
    assert sum(part["who"].n_unique() for part in parts.values()) == 40


def test_unknown_group_is_rejected_with_the_nearest_name() -> None:
    grouped = HASHED.model_copy(update={"group": "whom"})
    with pytest.raises(ConfigError, match=r"no column 'whom'; did you mean 'who'"):
        split(things(50), contract_of({"name": "x", "type": "float"}, {"name": "who", "type": "string"}), grouped, None)


def test_by_time_shares_take_the_place_of_days(orders: pl.DataFrame, shop: Contract) -> None:
    parts = split(orders, shop, SplitParams(validation_share=0.2, test_share=0.1), None)
    assert {name: part.height for name, part in parts.items()} == {"train": 70, "validation": 20, "test": 10}
    assert parts["train"]["placed"].max() < parts["validation"]["placed"].min()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_days": 3}, "go together"),
        ({"by": "hash", "validation_days": 3, "test_days": 3}, "days need `by: time`"),
        ({"group": "who"}, "group needs `by: hash`"),
    ],
)
def test_ways_to_split_that_contradict_each_other_are_rejected(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_model.parse(change, SplitParams, "split")
