"""A window does not depend on its source or on the size of its chunks."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.monitoring.sources.logged_rows import from_log
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window, merge
from flywheel_ml.prediction_log import Outcome, Prediction, Reader, Writer, dumps
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.utils.errors import DataError
from library.helpers import rows
from library.helpers.windows import write_scored_file

START_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000


def log(folder: Path, frame: pl.DataFrame, bundle: Bundle, labelled: int, degraded: int = 0) -> Reader:
    """A real log: one row a minute, labels for the first `labelled`, a fallback's answers for the last `degraded`."""
    contract = bundle.contract
    answers = bundle.predict(tables.to_columns(frame, contract.inputs))
    rows = json_rows(frame, contract)
    predictions = [
        Prediction(
            id=f"{at:032d}",
            timestamp_us=START_US + at * MINUTE_US,
            entity_id=None,
            event_timestamp_us=None,
            variant="champion",
            model_version="7",
            model_digest=None,
            inputs=dumps(rows[at]),
            output="{}",
            score=float(answers.scores[at]),
            latency_us=100,
            degraded=at >= len(rows) - degraded,
        )
        for at in range(len(rows))
    ]
    truth = frame[contract.target.name].to_list()
    outcomes = [Outcome(f"{at:032d}", START_US, json.dumps(truth[at])) for at in range(labelled)]
    with Writer(str(folder), "test") as writer:
        writer.append([*predictions, *outcomes]).result(timeout=30)
    return Reader(str(folder))


def assert_same(a: Window, b: Window) -> None:
    for field in fields(Window):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "slices":
            assert {name: v.tolist() for name, v in one.items()} == {name: v.tolist() for name, v in other.items()}
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other, field.name


def test_file_window_does_not_depend_on_chunk_size(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    path = write_scored_file(alike, bundle, tmp_path / "scored.parquet")
    whole = from_file(path, bundle, params.evaluate.slices, chunk_rows=10_000)
    assert_same(whole, from_file(path, bundle, params.evaluate.slices, chunk_rows=37))
    assert whole.rows == len(whole.output) == 1500
    assert whole.versions == {"1": 1500}


def test_merged_windows_equal_the_whole(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params) -> None:
    cuts = [(0, 1), (1, 900), (901, 599)]
    slices = params.evaluate.slices
    whole = from_file(write_scored_file(alike, bundle, tmp_path / "scored.parquet"), bundle, slices)
    parts = [
        from_file(write_scored_file(alike.slice(*cut), bundle, tmp_path / str(at) / "scored.parquet"), bundle, slices)
        for at, cut in enumerate(cuts)
    ]
    assert_same(merge(parts), whole)


def test_log_and_file_of_the_same_rows_give_equal_windows(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    slices = params.evaluate.slices
    logged = from_log(log(tmp_path / "log", alike, bundle, labelled=1500), bundle, slices, chunk_rows=200)
    filed = from_file(write_scored_file(alike, bundle, tmp_path / "scored.parquet"), bundle, slices)
    assert logged.profile == filed.profile
    assert logged.output.tolist() == filed.output.tolist()
    assert logged.truth.tolist() == filed.truth.tolist()
    assert all(logged.slices[name].tolist() == values.tolist() for name, values in filed.slices.items())
    assert logged.versions == {"7": 1500}
    assert sum(logged.hours.values()) == 1500
    assert len(logged.hours) == 26


def test_log_window_filters_by_time_and_version(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    reader = log(tmp_path, alike.head(300), bundle, labelled=0)
    since, until = START_US + 100 * MINUTE_US, START_US + 250 * MINUTE_US
    assert from_log(reader, bundle, since_us=since, until_us=until).rows == 150
    assert from_log(reader, bundle, model_version="7").rows == 300
    assert from_log(reader, bundle, model_version="8").rows == 0


def test_fallback_rows_are_counted_but_not_measured(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    window = from_log(log(tmp_path, alike.head(300), bundle, labelled=300, degraded=40), bundle)
    assert (window.rows, window.degraded, len(window.output)) == (300, 40, 260)
    assert window.profile.rows == 300
    assert window.profile.columns["prediction"].present == 260


def test_label_of_an_unknown_class_is_ignored(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    reader = log(tmp_path, alike.head(10), bundle, labelled=5)
    with Writer(str(tmp_path), "late") as writer:
        odd = [Outcome(f"{7:032d}", START_US, '"maybe"'), Outcome(f"{8:032d}", START_US, "null")]
        writer.append(odd).result(timeout=30)
    assert len(from_log(reader, bundle).truth) == 5


def test_file_without_the_target_has_no_labels(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    path = write_scored_file(alike.drop(bundle.contract.target.name), bundle, tmp_path / "scored.parquet")
    window = from_file(path, bundle)
    assert (window.rows, len(window.truth)) == (1500, 0)


def test_rows_with_a_missing_label_are_not_measured(tmp_path: Path, alike: pl.DataFrame, bundle: Bundle) -> None:
    target = bundle.contract.target.name
    some = alike.with_columns(pl.when(pl.int_range(pl.len()) < 100).then(pl.col(target)).alias(target))
    window = from_file(write_scored_file(some, bundle, tmp_path / "scored.parquet"), bundle)
    assert window.truth.tolist() == alike[target].head(100).to_list()


def test_empty_column_is_read_as_missing(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, contract: Contract
) -> None:
    column = rows.find_column(contract, lambda column: column.nullable, "nullable column")
    path = write_scored_file(alike, bundle, tmp_path / "scored.parquet")
    tables.write(pl.read_parquet(path).with_columns(pl.lit(None).alias(column.name)), path)
    assert from_file(path, bundle).profile.columns[column.name].missing == 1500


@pytest.mark.parametrize("fault", ["no score", "no input", "wrong type", "no probability", "score is null"])
def test_unscored_file_is_rejected_with_column_and_remedy(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, fault: str
) -> None:
    path = write_scored_file(alike, bundle, tmp_path / "scored.parquet")
    frame = pl.read_parquet(path)
    name = rows.find_column(bundle.contract, lambda column: column.type != "string", "column but of texts").name
    broken, named = {
        "no score": (frame.drop("score"), "'score'"),
        "no input": (frame.drop(name), f"'{name}'"),
        "wrong type": (frame.with_columns(pl.lit("soon").alias(name)), f"'{name}'"),
        "no probability": (frame.with_columns(pl.lit(1.5).alias("score")), "'score'"),
        "score is null": (frame.with_columns(pl.lit(None).alias("score")), "'score'"),
    }[fault]
    tables.write(broken, path)
    with pytest.raises(DataError, match="score") as error:
        from_file(path, bundle)
    assert named in str(error.value)


def test_empty_log_gives_an_empty_window(tmp_path: Path, bundle: Bundle, params: Params) -> None:
    window = from_log(Reader(str(tmp_path)), bundle, params.evaluate.slices)
    assert (window.rows, window.first, dict(window.versions)) == (0, None, {})
