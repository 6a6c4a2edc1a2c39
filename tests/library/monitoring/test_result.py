"""Real rows lead to each verdict, and the worst verdict wins."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.monitoring.result import EXIT_STATUS, Result, evaluate_window
from flywheel_ml.monitoring.sources.logged_rows import from_log
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.prediction_log import Reader
from library.helpers import rows
from library.helpers.windows import write_scored_file

NOW = datetime(2020, 1, 1, tzinfo=UTC)
Judged = Callable[[pl.DataFrame], Result]


@pytest.fixture
def judged(tmp_path: Path, bundle: Bundle, params: Params) -> Judged:
    """Scores a table and judges it."""

    def judged(frame: pl.DataFrame) -> Result:
        path = write_scored_file(frame, bundle, tmp_path / "scored.parquet")
        return evaluate_window(from_file(path, bundle, params.evaluate.slices), bundle, params, NOW)

    return judged


def shuffled(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """The same rows, with shuffled labels."""
    target = contract.target.name
    return frame.with_columns(frame[target].shuffle(seed=3).alias(target))


def test_rows_like_the_reference_are_ok(judged: Judged, alike: pl.DataFrame) -> None:
    found = judged(alike)
    assert (found.verdict, found.exit_status, found.violations) == ("ok", 0, ())
    assert found.headline.startswith("All is well")


def test_ok_without_labels_says_that_quality_is_not_known(
    judged: Judged, alike: pl.DataFrame, contract: Contract
) -> None:
    found = judged(alike.drop(contract.target.name))
    assert (found.verdict, found.quality.verdict) == ("ok", "insufficient data")
    assert "not known" in found.headline


def test_rows_unlike_the_reference_are_drift(judged: Judged, moved: pl.DataFrame, contract: Contract) -> None:
    found = judged(moved.drop(contract.target.name))
    assert (found.verdict, found.exit_status) == ("drift", 4)
    assert f"{len(found.drift.drifted)} of" in found.headline


def test_uninformative_model_is_degraded(judged: Judged, alike: pl.DataFrame, contract: Contract) -> None:
    found = judged(shuffled(alike, contract))
    assert (found.verdict, found.exit_status) == ("degraded", 5)
    assert found.drift.verdict == "ok"


def test_degraded_outranks_drift_and_both_are_reported(judged: Judged, moved: pl.DataFrame, contract: Contract) -> None:
    found = judged(shuffled(moved, contract))
    assert (found.verdict, found.drift.verdict) == ("degraded", "drift")
    assert any(found.drift.drifted[0] in sentence for sentence in found.sentences)


@pytest.mark.parametrize("rows", [1, 150])
def test_too_few_drifted_rows_are_insufficient_data(judged: Judged, moved: pl.DataFrame, rows: int) -> None:
    found = judged(moved.head(rows))
    assert (found.verdict, found.exit_status) == ("insufficient data", 3)


def test_empty_log_is_insufficient_data(tmp_path: Path, bundle: Bundle, params: Params) -> None:
    window = from_log(Reader(str(tmp_path)), bundle, params.evaluate.slices)
    found = evaluate_window(window, bundle, params, NOW)
    assert (found.verdict, found.volume.rows) == ("insufficient data", 0)


def test_contract_violations_are_counted_by_rule(judged: Judged, alike: pl.DataFrame, contract: Contract) -> None:
    number = rows.find_column(
        contract, lambda c: c.range is not None and c.type == "float", "float column with a range"
    )
    firm = rows.find_column(
        contract, lambda c: not c.nullable and c.type == "float" and c != number, "second float column without gaps"
    )
    first = pl.int_range(pl.len())
    assert number.range is not None
    broken = alike.with_columns(
        pl.when(first < 12).then(number.range[1] + 1).otherwise(pl.col(number.name)).alias(number.name),
        pl.when(first < 7).then(None).otherwise(pl.col(firm.name)).alias(firm.name),
    )
    found = {(v.column, v.rows) for v in judged(broken).violations}
    assert found == {(number.name, 12), (firm.name, 7)}


def test_unknown_categories_are_violations_beyond_tolerance(
    judged: Judged, alike: pl.DataFrame, contract: Contract
) -> None:
    column = rows.find_column(
        contract, lambda column: column.max_unknown_share > 0, "column that tolerates unseen categories"
    )
    tolerated = int(column.max_unknown_share * alike.height)

    def with_unknown(rows: int) -> pl.DataFrame:
        value = pl.when(pl.int_range(pl.len()) < rows).then(pl.lit("unheard-of")).otherwise(pl.col(column.name))
        return alike.with_columns(value.alias(column.name))

    assert judged(with_unknown(tolerated)).violations == ()
    assert [v.rows for v in judged(with_unknown(tolerated + 1)).violations] == [tolerated + 1]


def test_volume_buckets_add_up(judged: Judged, alike: pl.DataFrame, contract: Contract) -> None:
    if contract.time is None:
        pytest.skip("the contract has no time")
    volume = judged(alike).volume
    assert sum(bucket.rows for bucket in volume.buckets) == volume.rows == 1500
    steps = {b.start - a.start for a, b in pairwise(volume.buckets)}
    assert steps == {timedelta(hours=volume.bucket_hours)}
    assert volume.first == alike[contract.time.name].min()
    assert volume.last == alike[contract.time.name].max()


def test_fallback_answers_and_mixed_versions_are_reported(
    tmp_path: Path, alike: pl.DataFrame, bundle: Bundle, params: Params
) -> None:
    window = from_file(write_scored_file(alike, bundle, tmp_path / "scored.parquet"), bundle)
    found = evaluate_window(replace(window, degraded=15, versions={"1": 1000, "2": 500}), bundle, params, NOW)
    assert "A fallback, not the model, answered 1.0% of the rows." in found.sentences
    assert "The window mixes 2 model versions: 1, 2." in found.sentences


def test_equal_windows_give_equal_json_that_parses(judged: Judged, alike: pl.DataFrame) -> None:
    text = judged(alike).to_json()
    assert text == judged(alike).to_json()
    assert Result.model_validate_json(text, strict=False).to_json() == text
    assert json.loads(text)["verdict"] == "ok"


def test_exit_statuses_are_distinct_and_not_errors() -> None:
    assert len(set(EXIT_STATUS.values())) == 4
    assert not {1, 2} & set(EXIT_STATUS.values())
