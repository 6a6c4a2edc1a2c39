"""The commands of the log: their output, their errors in one line, and what the project's own files contain."""

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import retention
from flywheel_ml.monitoring.sources.profile_store import ProfileStore
from flywheel_ml.prediction_log import Job, Reader, Writer, dumps, new_id, now_us
from flywheel_ml.prediction_log.retention.prune import Limits
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.units import format_bytes, parse_duration, parse_size
from library.helpers import logs, project
from library.helpers.project import PROJECT

KEY = "customer-4711"


@pytest.fixture
def home(tmp_path: Path, contract: Contract, table: pl.DataFrame, bundle_path: Path) -> Path:
    """A project's folder with a served bundle, a log, a raw table and a scored file; one entity is in all of them."""
    path = tmp_path / "home"
    (path / "data").mkdir(parents=True)
    (path / paths.CONTRACT).write_text((project.ROOT / paths.CONTRACT).read_text())
    ref = ServingFolder(path / "var" / "serving", bundle_path).roll_out("1")
    row = dumps(json_rows(table.head(1), contract)[0])
    rows = [
        logs.make_prediction(30, at, KEY if at % 2 else "other", inputs=row, model_digest=ref.digest)
        for at in range(20)
    ]
    logs.write(
        path / "var" / "log",
        [*rows, logs.label(rows[1]), logs.make_prediction(1, 99, "other", inputs=row, model_digest=ref.digest)],
    )
    assert contract.id is not None
    mine = table.head(3).with_columns(pl.Series(contract.id.name, [KEY, "a", "b"]))
    mine.write_parquet(path / paths.TABLE)
    mine.write_parquet(path / "scored.parquet")
    with Writer(str(path / "var" / "log"), "batch") as writer:
        writer.append([Job(new_id(), now_us(), "1", None, "in.csv", str(path / "scored.parquet"), 3, 1.0)]).result(10)
    return path


def run(home: Path, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return project.cli(home, "log", *words, **settings)


def test_commands_show_prune_export_and_erase_a_log(home: Path, contract: Contract) -> None:
    shown = run(home, "stats")
    assert shown.returncode == 0, shown.stderr
    assert "21 predictions, 1 labels" in shown.stdout
    assert "full in" in shown.stdout
    exported = run(home, "export")
    assert exported.returncode == 0, exported.stderr
    (path,) = (home / "var" / "exports").glob(f"*/{contract.name}-*.parquet")
    assert pl.read_parquet(path).height == 21
    erased = run(home, "erase", KEY)
    assert erased.returncode == 0, erased.stderr
    for name in (path, home / paths.TABLE, home / "scored.parquet"):
        assert f"Erased from {name}" in erased.stdout
    assert "backups" in erased.stdout
    assert logs.find_bytes(home, KEY) == []
    pruned = run(home, "prune", ML_LOG_MAX_AGE="7d")
    assert "10 predictions" in pruned.stdout, pruned.stderr
    assert len(logs.read_ids(home / "var" / "log")) == 1
    again = run(home, "prune", "--age", "7d")
    assert (again.returncode, again.stdout[:16]) == (0, "Nothing to prune")


BAD = [
    (["erase", "nobody"], "nothing was found for the key 'nobody'"),
    (["prune"], "give AGE=90d or SIZE=10GB"),
    (["prune", "--age", "-3d"], "AGE: '-3d' is not a duration"),
    (["prune", "--size", "10 potatoes"], "SIZE: '10 potatoes' is not a size"),
    (["export", "--to", "2001-01-01"], "no predictions until 2001-01-01"),
    (["export", "--from", "2002-01-01", "--to", "2001-01-01"], "is not before"),
    (["prune", "--age", "7d", "--server", "http://127.0.0.1:9"], "does not answer"),
    (["erase", KEY, "--server", "127.0.0.1:9"], "does not answer"),
]
RUN_ALL = f"""
import contextlib, io, json, sys
from flywheel_ml.cli import verbs
from {project.PACKAGE}.project import PROJECT

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = ["log", *words]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            verbs.main(PROJECT)
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, errors.getvalue()]))
"""
"""Runs commands in one process, because each start takes seconds."""


def test_bad_input_is_one_line(home: Path) -> None:
    done = project.run(home, "-c", RUN_ALL, json.dumps([words for words, _ in BAD]))
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(BAD), done.stderr
    for (words, message), (status, errors) in zip(BAD, answers, strict=True):
        assert status, words
        assert message in errors
        assert errors.count("\n") == 1, errors
    assert len(logs.read_ids(home / "var" / "log")) == 21


def test_missing_log_is_one_line(home: Path) -> None:
    done = run(home, "stats", ML_PREDICTION_LOG="nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no prediction log in 'nowhere'" in done.stderr


def test_unreadable_export_ends_with_an_error(home: Path) -> None:
    path = home / "var" / "exports" / "mine" / "broken.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    done = run(home, "erase", KEY)
    assert done.returncode != 0
    assert "not everything was erased" in done.stderr
    assert logs.find_bytes(home / "var" / "log", KEY) == []


def test_schedule_prunes_to_the_limits_of_the_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert retention.prune_to_limits(PROJECT, Settings(_env_file=None)) == 0
    assert retention.prune_to_limits(PROJECT, Settings(_env_file=None, log_max_age="1d", prediction_log="none")) == 0
    assert retention.prune_to_limits(PROJECT, Settings(_env_file=None, log_max_age="7d")) == 21
    with pytest.raises(ConfigError, match="ML_LOG_MAX_SIZE"):
        retention.prune_to_limits(PROJECT, Settings(_env_file=None, log_max_size="much"))


def test_prune_profiles_the_rows_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    log = home / "var" / "log"
    hours = Reader(str(log)).count_hours()
    # Nobody knows the model of this row, so it cannot be profiled.
    logs.write(log, [logs.make_prediction(20, 100, model_digest="e" * 64)])
    settings = Settings(_env_file=None)
    with pytest.raises(ProjectError, match="1 rows belong to hours without a profile"):
        retention.prune(PROJECT, settings, Limits(timedelta(days=7), None))
    assert len(logs.read_ids(log)) == 22
    done = retention.prune(PROJECT, settings, Limits(timedelta(days=7), None), force=True)
    assert (done.counts["predictions"], done.unprofiled) == (21, 1)
    with ProfileStore(str(log)) as store:
        assert store.count_hours().items() >= hours.items()


@pytest.mark.parametrize(("text", "hours"), [("36h", 36), ("90d", 2160), (" 2W ", 336), ("1y", 8760)])
def test_age_is_parsed(text: str, hours: int) -> None:
    assert parse_duration(text).total_seconds() == hours * 3600


@pytest.mark.parametrize("text", ["", "0d", "d", "90", "1.5d", "-1d", "101y", "90m", "1d2h"])
def test_impossible_age_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("10GB", 10**10), ("1.5 MB", 1_500_000), ("2tb", 2 * 10**12)])
def test_size_is_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "10", "-1GB", "1KB", "GB", "1e3GB"])
def test_impossible_size_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


def test_bytes_are_formatted_in_the_largest_unit() -> None:
    assert [format_bytes(size) for size in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
