"""DVC knows what is out of date; what killed processes left does not stop it, and its faults are one line."""

from pathlib import Path

import pytest

from flywheel_ml.core import paths
from flywheel_ml.flows import training
from flywheel_ml.flows.versioning import dvc_stages
from flywheel_ml.utils.errors import Busy, ConfigError, DataError, ProjectError
from library.helpers import project
from library.helpers.project import PROJECT

HOLD = """
import sys
from dvc.repo import Repo
repo = Repo()
repo.lock.lock()
print("held", flush=True)
sys.stdin.read()
"""


def ran() -> list[str]:
    """Bring every stage up to date in turn; the ones that had to run."""
    return [name for name in dvc_stages.read_stages() if dvc_stages.reproduce(name)]


def test_after_a_run_nothing_is_out_of_date(finished: Path) -> None:
    assert not dvc_stages.is_outdated()
    assert ran() == []


def test_parameters_that_reach_no_stage_rerun_none(finished: Path) -> None:
    project.set_params(
        finished, {"gates": {"min_score": 0.55}, "monitor": {"significance_level": 0.02}, "score": {"chunk_rows": 9}}
    )
    assert not dvc_stages.is_outdated()
    assert ran() == []


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        (f"{project.PACKAGE}/features.py", ["train", "evaluate", "package"]),
        pytest.param(
            "flywheel_ml/model/training/selection.py", ["train", "evaluate", "package"], marks=pytest.mark.full
        ),
        (f"{project.PACKAGE}/gates.py", []),
        ("flywheel_ml/serving/app.py", []),
    ],
)
def test_changed_code_reruns_the_stages_that_use_it(finished: Path, module: str, stages: list[str]) -> None:
    path = finished / "src" / module
    path.write_text(path.read_text() + "\n# changed\n")
    assert dvc_stages.is_outdated() == bool(stages)
    assert ran() == stages
    assert not dvc_stages.is_outdated()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"write": {"a": 1}}', '{"write": {"a": {"pid": 999999, "cmd": "x"}}}']
)
def test_broken_or_held_lock_of_killed_process_does_not_stop_dvc(finished: Path, content: str) -> None:
    lock = finished / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(content)
    assert not dvc_stages.reproduce("ingest")


@pytest.mark.chaos
def test_a_dvc_that_somebody_else_runs_is_busy_not_broken(finished: Path) -> None:
    with project.start(finished, "-c", HOLD, stdin=-1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match="DVC is running in this project"):
            dvc_stages.reproduce("ingest")
        other.communicate()
    assert not dvc_stages.reproduce("ingest")


def test_a_stage_that_fails_is_named_after_its_own_message(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = {"by": "hash", "group": "no such column", "validation_days": None, "test_days": None}
    project.set_params(finished, {"split": nowhere})
    with pytest.raises(ProjectError, match=r"^stage 'split' failed; its message is above$"):
        dvc_stages.reproduce("split")
    told = capfd.readouterr().err
    assert told.startswith("error: contract.yaml has no column 'no such column'")
    assert len(told.splitlines()) == 1


def test_stages_run_with_the_python_that_runs_this(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("PATH", os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if ".venv" not in p))
    module = finished / "src" / "flywheel_ml" / "data" / "ingest.py"
    module.write_text(module.read_text() + "\n# changed\n")
    assert dvc_stages.reproduce("ingest")


@pytest.mark.parametrize("content", [None, "stages: [", "nothing: here", "[]"])
def test_a_graph_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("dvc.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"^dvc.yaml has no readable stages: .*; restore it$"):
        dvc_stages.read_stages()


def test_a_graph_that_dvc_refuses_is_one_line(finished: Path) -> None:
    (finished / "dvc.yaml").write_text("stages:\n  ingest:\n    no: command\n")
    with pytest.raises(DataError, match=r"^DVC: ") as told:
        dvc_stages.reproduce("ingest")
    assert "\n" not in str(told.value)


def test_an_edited_raw_table_is_recorded_and_said(finished: Path) -> None:
    assert training.provide_raw_data(PROJECT, project.RAW) == "data/raw/table.parquet as recorded"
    pointer = project.RAW.with_name("table.parquet.dvc")
    before = pointer.read_text()
    import polars as pl

    project.write_raw(finished, pl.read_parquet(project.RAW).tail(-1))
    assert training.provide_raw_data(PROJECT, project.RAW) == "data/raw/table.parquet changed: recorded with DVC"
    assert pointer.read_text() != before
    assert dvc_stages.is_outdated()
    outdated = dvc_stages.list_outdated()
    assert {*dvc_stages.read_stages()} <= {*outdated}, "reports of later stages are about the former rows"
    assert outdated["evaluate"].endswith(" would run again")


def test_a_deleted_raw_table_is_restored_as_it_was(finished: Path) -> None:
    content = project.RAW.read_bytes()
    project.RAW.unlink()
    assert training.provide_raw_data(PROJECT, project.RAW) == "data/raw/table.parquet restored by DVC"
    assert project.RAW.read_bytes() == content


def test_every_stage_says_what_it_does(finished: Path) -> None:
    assert all(dvc_stages.read_stages().values())
    assert paths.BUNDLE.name == "bundle"
