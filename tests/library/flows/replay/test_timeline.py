"""A replay knows at each time what was known then: the rows so far, and the labels that had arrived."""

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.flows.replay.params import ReplayParams
from flywheel_ml.flows.replay.timeline.periods import cut_parts, cut_periods
from flywheel_ml.flows.replay.timeline.table import Timeline, read_timeline
from flywheel_ml.utils.errors import ConfigError, DataError

START = datetime(2020, 1, 15)
COLUMNS = (
    Column(name="at", type="datetime", role="time"),
    Column(name="x", type="float"),
    Column(name="y", type="boolean", role="target"),
)
CONTRACT = Contract(name="drawn", columns=COLUMNS)


def make_table(days: int) -> pl.DataFrame:
    times = [START + timedelta(days=at) for at in range(days)]
    return pl.DataFrame({"at": times, "x": [1.0] * days, "y": [True] * days})


def find_first_until(params: ReplayParams) -> datetime:
    timeline = Timeline(make_table(170), CONTRACT, params)
    return timeline.find_until(timeline.list_parts(timeline.trained - 1)[-1])


def test_periods_are_calendar_months() -> None:
    found = cut_periods(datetime(2020, 11, 15, 12), datetime(2021, 2, 1))
    assert [one.label for one in found] == ["Nov 2020", "Dec 2020", "Jan 2021", "Feb 2021"]
    assert (found[0].start, found[-1].end) == (datetime(2020, 11, 1), datetime(2021, 3, 1))


@pytest.mark.parametrize("days", [2, 60, 4000])
def test_periods_of_other_spans_are_twelve_equal_parts(days: int) -> None:
    last = START + timedelta(days=days)
    found = cut_periods(START, last)
    assert len(found) == 12
    assert found[0].start == START
    assert found[0].label == ("15 Jan 2020 00:00" if days == 2 else "15 Jan 2020")
    assert all(one.end == after.start for one, after in pairwise(found))
    assert found[-1].start < last < found[-1].end


def test_parts_divide_each_period_without_gaps() -> None:
    periods = cut_periods(datetime(2020, 1, 1), datetime(2020, 6, 30))
    edges = cut_parts(periods, 4)
    assert len(edges) == 4 * 6 + 1
    assert edges[::4] == [*(one.start for one in periods), periods[-1].end]


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_known_rows_have_only_labels_that_had_arrived(delay: int, tmp_path: Path) -> None:
    timeline = Timeline(make_table(170), CONTRACT, ReplayParams(label_delay_parts=delay))
    now = timeline.list_parts(timeline.trained)[1]
    timeline.write_known(now, tmp_path / "known.parquet")
    known, until = pl.read_parquet(tmp_path / "known.parquet"), timeline.find_until(now)
    labelled = known.filter(pl.col("y").is_not_null())
    assert labelled["at"].max() == known.filter(pl.col("at") < until)["at"].max()
    assert known["at"].max() == timeline.get_rows(now)["at"].max()
    assert known.columns == ["at", "x", "y"]


def test_every_row_is_in_exactly_one_part() -> None:
    timeline = Timeline(make_table(170), CONTRACT, ReplayParams())
    parts = [part for at in range(len(timeline.periods)) for part in timeline.list_parts(at)]
    assert pl.concat([timeline.get_rows(part) for part in parts]).equals(make_table(170))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (ReplayParams(train_periods=7), "TRAIN is 7, and the table has 7 periods; leave at least one to replay"),
        (ReplayParams(train_periods=1, label_delay_parts=4), "lower LABEL_DELAY, or raise TRAIN"),
    ],
)
def test_impossible_periods_are_one_line_with_the_remedy(params: ReplayParams, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_first_until(params)


def test_table_without_a_time_column_is_rejected(tmp_path: Path) -> None:
    contract = Contract(name="drawn", columns=COLUMNS[1:])
    with pytest.raises(ConfigError, match="no column has role time, so rows have no order to replay; give the role"):
        read_timeline(tmp_path / "none.parquet", contract, ReplayParams())


def test_table_with_a_single_time_is_rejected() -> None:
    table = make_table(2).with_columns(pl.lit(START).alias("at"))
    with pytest.raises(DataError, match="fewer than two different times"):
        Timeline(table, CONTRACT, ReplayParams())
