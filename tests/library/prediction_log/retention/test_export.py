"""An export has every prediction and label of a span, typed by the contract of its model, or does not exist."""

import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.prediction_log import dumps, now_us
from flywheel_ml.prediction_log.retention import requests
from flywheel_ml.prediction_log.retention.export import MANIFEST, export, parse_span, read_manifest
from flywheel_ml.prediction_log.rows import EntityOutcome
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.utils.errors import Busy, ConfigError, DataError, ProjectError
from library.helpers import logs
from library.prediction_log.retention.conftest import RunScript, StartAndKill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_columns_have_the_types_of_the_contract(folder: Path, contract: Contract, table: pl.DataFrame) -> None:
    rows = json_rows(table.head(50), contract)
    digest = "a" * 64
    made = [
        logs.make_prediction(1, at, f"e{at}", inputs=dumps(row), model_digest=digest) for at, row in enumerate(rows)
    ]
    log = logs.write(folder, [*made, logs.label(made[0])])
    done = export(log, lambda found, _: contract if found == digest else None)
    (name,) = done.rows
    found = pl.read_parquet(Path(done.folder) / name)
    assert name == f"{contract.name}-{contract.fingerprint()[:8]}.parquet"
    given = table.head(50).select([column.name for column in contract.inputs])
    found = found.sort("log_id")
    for column in given.columns:
        kind, expected = found.schema[column], given.schema[column]
        assert kind == (expected if not expected.is_numeric() or expected.is_float() else pl.Int64)
        assert found[column].to_list() == given[column].to_list()
    assert found[contract.target.name].to_list() == [True] + [None] * 49
    assert found["log_entity_id"].to_list() == [f"e{at}" for at in range(50)]
    assert found["log_timestamp"].dtype == pl.Datetime("us", "UTC")


def test_models_with_one_contract_share_a_file(folder: Path, contract: Contract, table: pl.DataFrame) -> None:
    row = dumps(json_rows(table.head(1), contract)[0])
    other = contract.model_copy(update={"description": "changed"})
    contracts = {"a" * 64: contract, "b" * 64: contract, "c" * 64: other}
    rows = [
        logs.make_prediction(1, at, inputs=row, model_digest=digest) for at, digest in enumerate([*contracts, "d" * 64])
    ]
    done = export(logs.write(folder, rows), lambda digest, _: contracts.get(digest or ""))
    assert sorted(done.rows.values()) == [1, 1, 2]
    assert done.untyped == 1
    assert done.rows["untyped.parquet"] == 1


def test_span_selects_rows_and_labels_of_blocks(folder: Path) -> None:
    log = logs.write(
        folder,
        [logs.make_prediction(days, at) for at, days in enumerate((9, 5, 4.9, 1))],
        [block := logs.make_block(5, ["a", "b"]), logs.label(block.id)],
    )
    now = now_us()
    done = export(log, lambda *_: None, now - 6 * logs.DAY_US, now - 2 * logs.DAY_US)
    found = pl.read_parquet(Path(done.folder) / "untyped.parquet")
    assert found.height == 4
    assert found.filter(pl.col("log_id") == block.id)["label"].to_list() == ["true"]
    assert found["log_has_label"].sum() == 1


def test_values_of_metrics_are_exported_as_json(folder: Path) -> None:
    rows = [logs.make_prediction(1, at) for at in range(2)]
    values = [logs.value(rows[0]), logs.value(rows[0], "margin", -2.0)]
    found = pl.read_parquet(Path(export(logs.write(folder, rows, values), lambda *_: None).folder) / "untyped.parquet")
    assert [text and json.loads(text) for text in found.sort("log_id")["log_metrics"]] == [
        {"revenue": 12.5, "margin": -2.0},
        None,
    ]


def test_labels_of_entities_are_joined(folder: Path) -> None:
    row = logs.make_prediction(1, 1, "e1")
    outcome = EntityOutcome("e1", row.timestamp_us + logs.DAY_US // 24, "false", now_us())
    done = export(logs.write(folder, [row], [outcome]), lambda *_: None)
    assert pl.read_parquet(Path(done.folder) / "untyped.parquet")["label"].to_list() == ["false"]


def test_many_rows_at_one_timestamp_are_exported_once(folder: Path) -> None:
    at = now_us() - logs.DAY_US
    rows = [logs.make_prediction(1, number, timestamp_us=at + number // 3000) for number in range(7000)]
    done = export(logs.write(folder, rows), lambda *_: None)
    found = pl.read_parquet(Path(done.folder) / "untyped.parquet")
    assert found.height == found["log_id"].n_unique() == 7000


def test_span_without_rows_is_an_error_and_leaves_nothing(folder: Path) -> None:
    log = logs.write(folder, [logs.make_prediction(1)])
    with pytest.raises(ProjectError, match="no predictions until 2001-01-01"):
        export(log, lambda *_: None, *parse_span(None, datetime(2001, 1, 1)))
    assert [path.name for path in log.exports.iterdir()] == [MANIFEST]
    assert read_manifest(log) == []
    with pytest.raises(ConfigError, match="is not before"):
        parse_span(datetime(2002, 1, 1, tzinfo=UTC), datetime(2001, 1, 1))
    assert parse_span(datetime(1970, 1, 2), None)[0] == timedelta(days=1) // timedelta(microseconds=1)


LIMITED = """
import resource
import sys
from pathlib import Path
from flywheel_ml.prediction_log.retention.export import export
from library.helpers import logs

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export(logs.open_log(Path(sys.argv[1])), lambda *_: None)
except OSError as error:
    print(error.strerror or error)
"""
"""Its files may not grow, as on a full disk."""


def test_full_disk_leaves_no_export(folder: Path, run_script: RunScript) -> None:
    rows = [logs.make_prediction(1, at, output=dumps({"prediction": secrets.token_hex(50)})) for at in range(3000)]
    log = logs.write(folder, rows)
    assert "too large" in run_script(LIMITED, str(folder)).lower()
    assert [path.name for path in log.exports.iterdir()] == [MANIFEST]
    assert read_manifest(log) == []
    assert export(log, lambda *_: None).rows == {"untyped.parquet": 3000}


def test_existing_folder_and_running_job_are_refused(folder: Path, tmp_path: Path) -> None:
    log = logs.write(folder, [logs.make_prediction(1)])
    with pytest.raises(ProjectError, match="exists"):
        export(log, lambda *_: None, output=tmp_path)
    with requests.hold_job_lock(folder), pytest.raises(Busy):
        export(log, lambda *_: None)


def test_value_that_breaks_its_type_is_one_error(folder: Path, contract: Contract, table: pl.DataFrame) -> None:
    row = json_rows(table.head(1), contract)[0]
    column = next(column for column in contract.inputs if column.is_numeric)
    rows = [logs.make_prediction(1, inputs=dumps({**row, column.name: "many"}), model_digest="a" * 64)]
    log = logs.write(folder, rows)
    with pytest.raises(DataError, match=column.name):
        export(log, lambda *_: contract)
    assert [path.name for path in log.exports.iterdir()] == [MANIFEST]


KILLED = """
import sys
from pathlib import Path
from flywheel_ml.prediction_log.retention.export import export
from library.helpers import logs
export(logs.open_log(Path(sys.argv[1])), lambda *_: None)
"""


@pytest.mark.chaos
def test_killed_export_leaves_nothing_half_written(folder: Path, start_and_kill: StartAndKill) -> None:
    log = logs.write(folder, [logs.make_prediction(1, at) for at in range(60_000)])
    for seconds in (1.0, 1.2, 1.5):
        start_and_kill(KILLED, str(folder), seconds)
        for listed in read_manifest(log):
            assert listed["complete"] == Path(listed["folder"]).is_dir() or not listed["complete"]
    done = export(log, lambda *_: None)
    assert done.rows == {"untyped.parquet": 60_000}
    manifest = json.loads((log.exports / MANIFEST).read_text())["exports"]
    assert all(one["complete"] for one in manifest)
    folders = {path.name for path in log.exports.iterdir() if path.is_dir()}
    assert folders == {Path(one["folder"]).name for one in manifest}
