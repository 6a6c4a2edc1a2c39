"""From nothing, the example's raw table is fetched; where one was on record, the two are compared."""

import shutil
from pathlib import Path

from flywheel_ml.flows import training
from library.helpers.project import PROJECT

RAW = Path("data/raw/fetched.parquet")


def test_a_raw_table_that_is_nowhere_is_fetched_and_recorded(finished: Path) -> None:
    assert training.provide_raw_data(PROJECT, RAW) == f"{RAW} fetched and recorded with DVC"
    assert RAW.with_name(RAW.name + ".dvc").is_file()

    RAW.unlink()
    shutil.rmtree(".dvc/cache")
    assert (
        training.provide_raw_data(PROJECT, RAW)
        == f"{RAW} fetched again, because DVC has no copy; it equals the recorded version"
    )
