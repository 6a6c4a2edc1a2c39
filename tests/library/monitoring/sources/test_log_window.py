"""A window read through profiles equals the one that is read from the rows."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring.sources import profiling
from flywheel_ml.monitoring.sources.log_window import Log, Span, read_window
from flywheel_ml.monitoring.sources.profile_store import FILE, ModelKey, ProfileStore
from flywheel_ml.monitoring.window import Window
from flywheel_ml.prediction_log import Prediction, Reader
from flywheel_ml.utils.errors import ConfigError
from library.helpers.postgresql import PostgreSQL
from library.helpers.windows import HOUR_US, START_US, LoggedModel, write_log

MINUTE_US = 60_000_000
NOW_US = START_US + 1000 * HOUR_US
MODEL = ModelKey("7", "a" * 64)
OTHER = ModelKey("8", "b" * 64)
EVERYTHING = Span(0, NOW_US)


def write_mixed_log(target: str, frame: pl.DataFrame, bundle: Bundle) -> None:
    """Rows of 12 hours: one model with and without digest, another model, a shadow, fallbacks, some labels."""
    rng = np.random.default_rng(0)
    for role, model, rows in (
        ("serve", LoggedModel(*MODEL), 700),
        ("serve", LoggedModel("7", None), 200),
        ("serve", LoggedModel(*OTHER, "challenger"), 300),
        ("other", LoggedModel(*MODEL, "canary"), 200),
        ("other", LoggedModel(*OTHER, "shadow"), 100),
    ):
        some = frame.sample(rows, seed=len(role) + rows)
        times = np.sort(START_US + rng.integers(0, 12 * HOUR_US, rows)).tolist()
        write_log(target, some, bundle, model, times, range(0, rows, 3), range(0, rows, 11), role)


def find(*known: ModelKey, bundle: Bundle) -> Callable[[ModelKey], Bundle | None]:
    return lambda model: bundle if model in known or model.digest is None else None


def update(target: str, store: ProfileStore, bundle: Bundle, *known: ModelKey, now_us: int = NOW_US) -> int:
    return profiling.update_profiles(Reader(target), store, find(*known, bundle=bundle), now_us)


def assert_equal(one: Window, other: Window) -> None:
    """Assert that windows are equal, in whatever order their labelled rows are."""
    for field in fields(Window):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "slices":
            assert {k: sorted(v.tolist()) for k, v in a.items()} == {k: sorted(v.tolist()) for k, v in b.items()}
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.sort(a, axis=0), np.sort(b, axis=0))
        else:
            assert a == b, field.name


@pytest.fixture(params=["folder", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "log")
    postgres: PostgreSQL = request.getfixturevalue("postgres")
    return postgres.database()


def test_window_is_equal_with_and_without_profiles(
    target: str, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    write_mixed_log(target, alike, bundle)
    rng, slices = np.random.default_rng(1), params.evaluate.slices
    with ProfileStore(target) as store:
        assert update(target, store, bundle, MODEL, OTHER) == 12
        spans = [Span(*sorted((START_US + rng.integers(-HOUR_US, 13 * HOUR_US, 2)).tolist())) for _ in range(12)]
        for span in (EVERYTHING, Span(START_US + HOUR_US, START_US + 3 * HOUR_US), *spans):
            for model in (MODEL, OTHER):
                rows = read_window(Log(Reader(target)), bundle, model, span, slices)
                assert_equal(read_window(Log(Reader(target), store), bundle, model, span, slices), rows)
    assert read_window(Log(Reader(target)), bundle, MODEL, EVERYTHING).rows == 1100
    assert read_window(Log(Reader(target)), bundle, OTHER, EVERYTHING).rows == 300


def test_profiles_answer_without_reading_rows(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    target = str(tmp_path)
    write_mixed_log(target, alike, bundle)
    with ProfileStore(target) as store:
        update(target, store, bundle, MODEL, OTHER)
        before = read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING)
        for path in tmp_path.glob("*.db"):
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE predictions SET inputs = '{}'")
        after = read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING)
    assert after.profile == before.profile


def test_profiles_outlive_pruned_rows(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    target = str(tmp_path)
    write_mixed_log(target, alike, bundle)
    with ProfileStore(target) as store:
        update(target, store, bundle, MODEL, OTHER)
        before = read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING)
        for path in tmp_path.glob("*.db"):
            with sqlite3.connect(path) as connection:
                connection.execute("DELETE FROM predictions WHERE timestamp_us < ?", (START_US + 5 * HOUR_US // 2,))
        assert update(target, store, bundle, MODEL, OTHER) == 0
        after = read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING)
    assert after.profile == before.profile
    assert after.hours == before.hours


def test_late_rows_are_counted_before_and_after_the_next_update(
    target: str, alike: pl.DataFrame, bundle: Bundle
) -> None:
    write_mixed_log(target, alike, bundle)
    with ProfileStore(target) as store:
        update(target, store, bundle, MODEL, OTHER)
        write_log(target, alike.head(5), bundle, LoggedModel(*MODEL), [START_US + 2 * HOUR_US] * 5)
        rows = read_window(Log(Reader(target)), bundle, MODEL, EVERYTHING)
        assert rows.rows == 1105
        assert_equal(read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING), rows)
        assert update(target, store, bundle, MODEL, OTHER) == 1
        assert_equal(read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING), rows)


def test_current_hour_is_read_from_rows(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    target = str(tmp_path)
    write_log(target, alike.head(90), bundle, LoggedModel(*MODEL), [START_US + at * MINUTE_US for at in range(90)])
    now_us = START_US + 90 * MINUTE_US
    with ProfileStore(target) as store:
        assert update(target, store, bundle, MODEL, now_us=now_us) == 1
        assert store.count_hours() == {START_US // HOUR_US: 60}
        assert read_window(Log(Reader(target), store), bundle, MODEL, Span(0, now_us)).rows == 90


def test_models_without_a_bundle_are_profiled_once_it_is_back(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle
) -> None:
    target = str(tmp_path)
    write_mixed_log(target, alike, bundle)
    with ProfileStore(target) as store:
        assert update(target, store, bundle, MODEL) == 12
        rows = read_window(Log(Reader(target)), bundle, OTHER, EVERYTHING)
        assert_equal(read_window(Log(Reader(target), store), bundle, OTHER, EVERYTHING), rows)
        assert update(target, store, bundle, MODEL) == 0
        assert update(target, store, bundle, MODEL, OTHER) == 12
        assert store.find_uncounted() == {}
        assert_equal(read_window(Log(Reader(target), store), bundle, OTHER, EVERYTHING), rows)


def test_profiles_in_other_bins_are_not_used(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, bundle_path: Path
) -> None:
    target, other = str(tmp_path), Bundle.open(bundle_path)
    name, counts = next((n, c) for n, c in bundle.profile.columns.items() if len(c.edges) > 2)
    edges = tuple(edge + 0.5 for edge in counts.edges)
    columns = {**bundle.profile.columns, name: counts.model_copy(update={"edges": edges})}
    other.profile = bundle.profile.model_copy(update={"columns": columns})
    write_mixed_log(target, alike, bundle)
    with ProfileStore(target) as store:
        update(target, store, other, MODEL, OTHER)
        rows = read_window(Log(Reader(target)), bundle, MODEL, EVERYTHING)
        assert_equal(read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING), rows)


def test_two_updates_at_once_leave_one_profile_per_hour(target: str, alike: pl.DataFrame, bundle: Bundle) -> None:
    write_mixed_log(target, alike, bundle)

    def run(_: int) -> int:
        with ProfileStore(target) as store:
            return update(target, store, bundle, MODEL, OTHER)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, range(4))) == 12
    with ProfileStore(target) as store:
        rows = read_window(Log(Reader(target)), bundle, MODEL, EVERYTHING)
        assert_equal(read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING), rows)


KILLED = """
import os, sys
from pathlib import Path
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.monitoring.sources import profiling
from flywheel_ml.monitoring.sources.profile_store import ProfileStore
from flywheel_ml.prediction_log import Prediction, Reader

bundle, done = Bundle.open(Path(sys.argv[2])), []
original = profiling._profile_rows

def count(*args):
    done.append(1)
    if len(done) == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return original(*args)

profiling._profile_rows = count
with ProfileStore(sys.argv[1]) as store:
    profiling.update_profiles(Reader(sys.argv[1]), store, lambda model: bundle, int(sys.argv[4]))
"""


@pytest.mark.parametrize("after", [1, 20])
def test_killed_update_is_completed_by_the_next(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, bundle_path: Path, after: int
) -> None:
    target = str(tmp_path)
    write_mixed_log(target, alike, bundle)
    command = [sys.executable, "-c", KILLED, target, str(bundle_path), str(after), str(NOW_US)]
    assert subprocess.run(command, check=False, env=dict(os.environ)).returncode == -signal.SIGKILL
    with ProfileStore(target) as store:
        update(target, store, bundle, MODEL, OTHER)
        rows = read_window(Log(Reader(target)), bundle, MODEL, EVERYTHING)
        assert_equal(read_window(Log(Reader(target), store), bundle, MODEL, EVERYTHING), rows)


def test_unusable_profiles_are_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 200)
    with pytest.raises(ConfigError, match=r"profiles\.sqlite cannot be used: .*; delete the file to rebuild it"):
        ProfileStore(str(tmp_path))


def test_newer_profiles_are_refused(tmp_path: Path) -> None:
    ProfileStore(str(tmp_path)).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE profile_schema SET version = 99")
    with pytest.raises(ConfigError, match="schema version 99, this package knows 1; update the package"):
        ProfileStore(str(tmp_path))


def test_prune_during_an_update_does_not_replace_a_complete_profile(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle
) -> None:
    target, model = str(tmp_path), LoggedModel(*MODEL)
    write_log(target, alike.head(100), bundle, model, [START_US] * 100)

    class PrunedReader(Reader):
        def unlabelled(self, since_us: int = 0, until_us: int | None = None) -> Iterator[Prediction]:
            with sqlite3.connect(tmp_path / "serve-0.db") as connection:
                connection.execute("DELETE FROM predictions")
            return super().unlabelled(since_us, until_us)

    with ProfileStore(target) as store:
        update(target, store, bundle, MODEL)
        write_log(target, alike.head(1), bundle, model, [START_US], role="late")
        profiling.update_profiles(PrunedReader(target), store, find(MODEL, bundle=bundle), NOW_US)
        assert store.count_hours() == {START_US // HOUR_US: 100}


def test_hour_that_another_process_profiles_meanwhile_is_no_error(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle
) -> None:
    target = str(tmp_path)
    write_log(target, alike.head(10), bundle, LoggedModel(*MODEL), [START_US] * 10)

    class OvertakenStore(ProfileStore):
        def count_hours(self) -> dict[int, int]:
            found = super().count_hours()
            with ProfileStore(target) as other:
                update(target, other, bundle)
            return found

    with OvertakenStore(target) as store:
        assert update(target, store, bundle) == 1
