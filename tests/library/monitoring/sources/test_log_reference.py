"""A window may be compared with an earlier span of the log, or with the same season of earlier years.

One year of the example cannot show a season, so the log of this test is synthetic.
"""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import MonitorParams, NamedSpan
from flywheel_ml.monitoring.drift import detect_drift
from flywheel_ml.monitoring.sources.log_reference import read_reference
from flywheel_ml.monitoring.sources.log_window import Log, Span, read_window
from flywheel_ml.monitoring.sources.profile_store import ModelKey, ProfileStore
from flywheel_ml.monitoring.sources.profiling import update_profiles
from flywheel_ml.prediction_log import Reader, to_datetime
from flywheel_ml.utils.errors import ConfigError
from library.helpers.windows import HOUR_US, START_US, LoggedModel, write_log

WEEK_US = 7 * 24 * HOUR_US
DAY_US = 24 * HOUR_US
DAY = Span(START_US, START_US + DAY_US)
LAST_YEAR_US = START_US - 52 * WEEK_US


def log_day(target: str, frame: pl.DataFrame, bundle: Bundle, start_us: int, digest: str | None = None) -> None:
    step = DAY_US // frame.height
    model = LoggedModel("7", digest or bundle.digest)
    write_log(target, frame, bundle, model, [start_us + at * step for at in range(frame.height)])


def name_span(start_us: int) -> NamedSpan:
    since = to_datetime(start_us)
    return NamedSpan(since=since, until=since + timedelta(days=1))


@pytest.fixture
def seasonal(tmp_path: Path, alike: pl.DataFrame, moved: pl.DataFrame, bundle: Bundle) -> str:
    """Two days a year apart whose rows differ from the test rows alike, and an ordinary day between."""
    target = str(tmp_path)
    log_day(target, moved.sample(900, seed=1), bundle, LAST_YEAR_US)
    log_day(target, alike.head(900), bundle, START_US - 20 * WEEK_US)
    log_day(target, moved.sample(900, seed=2), bundle, DAY.since_us)
    return target


@pytest.mark.parametrize("profiled", [False, True])
def test_season_is_no_drift_from_the_same_season(seasonal: str, bundle: Bundle, profiled: bool) -> None:
    params = MonitorParams(references={"spring": name_span(START_US - 20 * WEEK_US)})
    with ProfileStore(seasonal) as store:
        update_profiles(Reader(seasonal), store, lambda _: bundle, START_US + 2 * DAY_US)
        log = Log(Reader(seasonal), store if profiled else None)
        window = read_window(log, bundle, ModelKey("7", bundle.digest), DAY)
        found = {name: read_reference(name, params, log, bundle, DAY) for name in ("test", "same-season", "spring")}
    verdicts = {name: detect_drift(one.profile, window.profile, params).verdict for name, one in found.items()}
    assert verdicts == {"test": "drift", "same-season": "ok", "spring": "drift"}
    assert found["same-season"].profile.rows == found["spring"].profile.rows == 900


def test_rows_of_another_model_are_predicted_anew(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    target, params = str(tmp_path), MonitorParams(references={"before": name_span(START_US - WEEK_US)})
    log_day(target, alike.head(900), bundle, START_US - WEEK_US, digest="c" * 64)
    found = read_reference("before", params, Log(Reader(target)), bundle, DAY).profile
    log_day(target, alike.head(900), bundle, START_US - 3 * WEEK_US)
    own = MonitorParams(references={"own": name_span(START_US - 3 * WEEK_US)})
    assert found == read_reference("own", own, Log(Reader(target)), bundle, DAY).profile


@pytest.mark.parametrize("same_bins", [True, False])
def test_profiles_of_another_model_replace_pruned_rows(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, bundle_path: Path, same_bins: bool
) -> None:
    target, other = str(tmp_path), Bundle.open(bundle_path)
    prediction = bundle.profile.columns["prediction"]
    columns = {**bundle.profile.columns, "prediction": prediction.model_copy(update={"edges": prediction.edges[1:]})}
    columns["prediction"] = columns["prediction"].model_copy(update={"counts": prediction.counts[1:]})
    if not same_bins:
        name, counts = next((n, c) for n, c in columns.items() if len(c.edges) > 2)
        columns[name] = counts.model_copy(update={"edges": (*counts.edges[:-1], counts.edges[-1] + 1)})
    other.profile = bundle.profile.model_copy(update={"columns": columns})
    params = MonitorParams(references={"before": name_span(START_US - WEEK_US)})
    log_day(target, alike.head(900), bundle, START_US - WEEK_US, digest="c" * 64)
    expected = read_reference("before", params, Log(Reader(target)), bundle, DAY).profile
    with ProfileStore(target) as store:
        update_profiles(Reader(target), store, lambda _: other, START_US)
        log = Log(Reader(target), store)
        assert read_reference("before", params, log, bundle, DAY).profile == expected
        with sqlite3.connect(tmp_path / "serve-0.db") as connection:
            connection.execute("DELETE FROM predictions")
        if not same_bins:
            with pytest.raises(ConfigError, match="the log has no rows of reference 'before'"):
                read_reference("before", params, log, bundle, DAY)
            return
        found = read_reference("before", params, log, bundle, DAY).profile
    assert found.rows == 900
    assert found.columns["prediction"].rows == 0
    inputs = [name for name in expected.columns if name != "prediction"]
    assert [found.columns[name] for name in inputs] == [expected.columns[name] for name in inputs]


@pytest.mark.parametrize(
    ("name", "span", "message"),
    [
        ("atumn", DAY, r"reference 'atumn' is unknown; did you mean 'autumn'\?, or add it to monitor\.references"),
        ("autumn", DAY, r"the log has no rows of reference 'autumn' \(2020-10-01 00:00 to 2020-11-01 00:00\)"),
        ("today", DAY, r"reference 'today' \(.*\) overlaps with the window; give another --since"),
        ("same-season", DAY, r"the log has no rows of the same season \(.*\); pass --reference test"),
        ("same-season", Span(0, START_US), r"the window is longer than 52 weeks, so it has no same season"),
    ],
)
def test_reference_without_rows_is_refused(tmp_path: Path, bundle: Bundle, name: str, span: Span, message: str) -> None:
    autumn = NamedSpan(since=datetime(2020, 10, 1), until=datetime(2020, 11, 1, tzinfo=UTC))
    params = MonitorParams(references={"autumn": autumn, "today": name_span(START_US)})
    with pytest.raises(ConfigError, match=message):
        read_reference(name, params, Log(Reader(str(tmp_path))), bundle, span)


@pytest.mark.parametrize("name", ["test", "same-season"])
def test_reserved_reference_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a reference of its own; rename the span"):
        MonitorParams(references={name: name_span(START_US)})


def test_reference_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="since must be earlier than until"):
        NamedSpan(since=datetime(2025, 2, 1), until=datetime(2025, 1, 1, tzinfo=UTC))
