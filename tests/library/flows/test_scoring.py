"""Batch scoring answers as the bundle does, bit for bit, in flat memory; its output is whole or absent."""

import gzip
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import MANIFEST, Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.params import ScoreParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import scoring
from flywheel_ml.prediction_log import Reader
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, DataError, ServingError
from flywheel_ml.utils.files import sha256_file
from library.helpers import project, rows
from library.helpers.project import PROJECT

PEAK = """
import resource, sys
from pathlib import Path
from flywheel_ml.flows import scoring
from flywheel_ml.core.params import ScoreParams
from flywheel_ml.core.settings import Settings
from {package}.project import PROJECT
scoring.score(PROJECT, Path(sys.argv[1]), Path("out.parquet"), Settings.read(), ScoreParams(chunk_rows=2000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
"""Scores a file and says the most memory it took, in KiB on Linux and bytes on macOS."""


@pytest.fixture
def folder(tmp_path: Path, bundle_path: Path) -> Path:
    """A folder in which the tiny bundle is champion, version 7."""
    ref = serving_folder.BundleRef(version="7", digest=sha256_file(bundle_path / MANIFEST))
    serving = tmp_path / "var" / "serving"
    shutil.copytree(bundle_path, serving_folder.bundle_folder(serving, ref))
    serving_folder.write_routing(
        serving, serving_folder.Routing(name="small", champion=ref, updated_at="2013-11-01T00:00:00+00:00")
    )
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(serving_folder=folder / "var" / "serving", prediction_log=str(folder / "var" / "log"))


def in_parts(table: pl.DataFrame, folder: Path) -> None:
    folder.mkdir()
    for at, part in enumerate((table.head(50), table.tail(-50))):
        part.write_parquet(folder / f"{at}.parquet")


def scored(
    folder: Path, settings: Settings, table: pl.DataFrame, name: str = "in.parquet", chunk: int = 700
) -> pl.DataFrame:
    source = folder / name
    write: dict[str, Callable[[], object]] = {
        "in.csv": lambda: table.write_csv(source),
        "in.tsv": lambda: table.write_csv(source, separator="\t"),
        "in.ndjson": lambda: table.write_ndjson(source),
        "in.arrow": lambda: table.write_ipc(source),
        "western.csv": lambda: source.write_bytes(table.write_csv(separator=";").encode("cp1252")),
        "titled.csv": lambda: source.write_text("Flights of June\n\n" + table.write_csv()),
        "declared.csv": lambda: source.write_text("sep=;\n" + table.write_csv(separator=";")),
        "appended.csv": lambda: source.write_text(table.head(50).write_csv() + table.tail(-50).write_csv()),
        "folder": lambda: in_parts(table, source),
        "in.csv.gz": lambda: source.write_bytes(gzip.compress(table.write_csv().encode())),
    }
    write.get(name, lambda: table.write_parquet(source))()
    scoring.score(PROJECT, source, folder / "out.parquet", settings, ScoreParams(chunk_rows=chunk))
    return pl.read_parquet(folder / "out.parquet")


@pytest.mark.parametrize("chunk", [1, 700, 100_000])
def test_scores_equal_the_bundle_for_any_chunk_size(
    folder: Path, settings: Settings, table: pl.DataFrame, columns: Columns, bundle_path: Path, chunk: int
) -> None:
    some = table.head(120) if chunk == 1 else table
    found = scored(folder, settings, some, chunk=chunk)
    wanted = Bundle.open(bundle_path).predict(columns)
    assert found["score"].to_numpy().tobytes() == wanted.scores[: some.height].tobytes()
    assert found["prediction"].to_list() == wanted.values[: some.height].tolist()
    assert found["model_version"].unique().to_list() == ["7"]
    assert found.select(table.columns).equals(some)


@pytest.mark.parametrize(
    "name",
    [
        "in.csv",
        "in.tsv",
        "in.ndjson",
        "in.arrow",
        "western.csv",
        "in.csv.gz",
        "titled.csv",
        "declared.csv",
        "appended.csv",
        "folder",
    ],
)
def test_file_of_any_format_is_scored_like_parquet(
    folder: Path, settings: Settings, table: pl.DataFrame, name: str
) -> None:
    exact = table.with_columns(pl.col(pl.Float64).cast(pl.Float32).cast(pl.Float64))
    a, b = scored(folder, settings, exact), scored(folder, settings, exact, name)
    assert a["score"].equals(b["score"])
    assert a.columns == b.columns


@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_columns_that_adopt_renamed_are_found(tmp_path: Path, name: str) -> None:
    made = {"prediction_given": "float", "size": "float", "y": "boolean"}
    told = [{"name": one, "type": kind, **({"role": "target"} if one == "y" else {})} for one, kind in made.items()]
    contract = config_model.parse({"name": "any", "columns": told}, Contract, "contract.yaml")
    table = pl.DataFrame({"prediction": [1.5, None], "size": [2.0, 3.0]})
    (table.write_csv if name == "in.csv" else table.write_parquet)(tmp_path / name)
    (found,) = scoring._read_chunks(tmp_path / name, contract, 10)
    assert found.equals(table.rename({"prediction": "prediction_given"}))


def test_a_cell_that_only_a_guess_could_read_is_refused_by_name(
    folder: Path, settings: Settings, table: pl.DataFrame, contract: Contract
) -> None:
    column = next(column for column in contract.inputs if column.type == "float")
    text = table.head(9).with_columns(pl.lit("1.234,50").alias(column.name)).write_csv(separator=";")
    (folder / "in.csv").write_text(text)
    with pytest.raises(DataError, match=rf"in\.csv: column '{re.escape(column.name)}', row 0: '1\.234,50' must be a"):
        scoring.score(PROJECT, folder / "in.csv", folder / "out.parquet", settings, ScoreParams())
    assert not (folder / "out.parquet").exists()


def test_absent_nullable_column_is_missing_and_reported(
    folder: Path, settings: Settings, table: pl.DataFrame, contract: Contract
) -> None:
    name = rows.find_column(contract, lambda column: column.nullable, "column that may be missing").name
    gone, empty = table.head(50).drop(name), table.head(50).with_columns(pl.lit(None).alias(name))
    assert scored(folder, settings, gone)["score"].equals(scored(folder, settings, empty)["score"])
    gone.write_parquet(folder / "in.parquet")
    done = scoring.score(PROJECT, folder / "in.parquet", folder / "out.parquet", settings, ScoreParams())
    assert done.violations[f"{name}: the column is missing"] == 50


def test_a_job_is_one_row_of_the_log(folder: Path, settings: Settings, table: pl.DataFrame) -> None:
    scored(folder, settings, table)
    (job,) = Reader(settings.prediction_log).jobs()
    assert (job.rows, job.model_version, job.output) == (table.height, "7", str(folder / "out.parquet"))
    assert not list(Reader(settings.prediction_log).predictions())


def test_rows_that_break_the_contract_are_scored_and_counted(
    folder: Path, settings: Settings, table: pl.DataFrame, contract: Contract
) -> None:
    column = next(column for column in contract.inputs if column.range is not None)
    assert column.range is not None
    wrong = pl.when(pl.int_range(pl.len()) < 3).then(column.range[1] + 1).otherwise(pl.col(column.name))
    table.with_columns(wrong.cast(table.schema[column.name]).alias(column.name)).write_parquet(folder / "in.parquet")
    job = scoring.score(PROJECT, folder / "in.parquet", folder / "out.parquet", settings, ScoreParams())
    assert job.rows == table.height
    assert [(rule.split(":")[0], count) for rule, count in job.violations.items()] == [(column.name, 3)]


def test_missing_mistyped_or_taken_column_is_rejected_by_name(
    folder: Path, settings: Settings, table: pl.DataFrame, contract: Contract
) -> None:
    first = next(column for column in contract.inputs if column.is_numeric)
    with pytest.raises(DataError, match=f"has no column '{re.escape(first.name)}'"):
        scored(folder, settings, table.drop(first.name))
    texts = table[first.name].cast(pl.String).to_list()
    texts[5] = "much"
    with pytest.raises(DataError, match="row 5: 'much' must be a number"):
        scored(folder, settings, table.with_columns(pl.Series(first.name, texts)))
    with pytest.raises(DataError, match="already has a column 'score'"):
        scored(folder, settings, table.with_columns(score=0.5))
    assert not (folder / "out.parquet").exists()
    assert not project.leftovers(folder)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("in.parquet", "is the input"),
        ("out.csv", "must end in .parquet"),
        ("in.parquet/out.parquet", "cannot be created"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    folder: Path, settings: Settings, table: pl.DataFrame, output: str, said: str
) -> None:
    table.write_parquet(folder / "in.parquet")
    before = sha256_file(folder / "in.parquet")
    with pytest.raises(DataError, match=said):
        scoring.score(PROJECT, folder / "in.parquet", folder / output, settings, ScoreParams())
    assert sha256_file(folder / "in.parquet") == before


def test_without_a_champion_nothing_is_scored(tmp_path: Path, table: pl.DataFrame) -> None:
    table.write_parquet(tmp_path / "in.parquet")
    empty = Settings(serving_folder=tmp_path / "serving", prediction_log=str(tmp_path / "log"))
    with pytest.raises(ServingError, match="roll a model out first"):
        scoring.score(PROJECT, tmp_path / "in.parquet", tmp_path / "out.parquet", empty, ScoreParams())


def test_a_log_that_cannot_be_written_is_known_before_the_work(
    folder: Path, settings: Settings, table: pl.DataFrame
) -> None:
    (folder / "var" / "log").write_text("in the way")
    table.write_parquet(folder / "in.parquet")
    with pytest.raises(ConfigError):
        scoring.score(PROJECT, folder / "in.parquet", folder / "out.parquet", settings, ScoreParams())
    assert not (folder / "out.parquet").exists()


@pytest.mark.chaos
def test_a_killed_job_leaves_the_former_output_as_it_was(
    folder: Path, settings: Settings, table: pl.DataFrame, contract: Contract
) -> None:
    before = scored(folder, settings, table)
    pl.concat([table] * 40).write_parquet(folder / "large.parquet")
    script = PEAK.format(package=project.PACKAGE).replace("chunk_rows=2000", "chunk_rows=50")
    with subprocess.Popen(
        [sys.executable, "-c", script, "large.parquet"],
        cwd=folder,
        env=project.environment(folder),
        stdout=subprocess.PIPE,
    ) as job:
        end = time.monotonic() + 30
        while not any(part.stat().st_size for part in folder.glob(".out.parquet.*")) and time.monotonic() < end:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL
    assert pl.read_parquet(folder / "out.parquet").equals(before)


@pytest.mark.chaos
def test_memory_does_not_grow_with_the_rows(folder: Path, contract: Contract) -> None:
    small = rows.make_table(contract, 5_000)
    peaks = []
    for times in (1, 20):
        # Row groups of one size: a file's own row group is what a reader must hold.
        pl.concat([small] * times).write_parquet(folder / "in.parquet", row_group_size=5_000)
        done = project.run(folder, "-c", PEAK.format(package=project.PACKAGE), "in.parquet")
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    in_memory = small.estimated_size() * 20 / 1024
    assert np.diff(peaks)[0] < max(30_000, in_memory / 2), peaks
