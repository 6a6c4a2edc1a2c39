"""What a replay refuses, it refuses in one line, before anything is made."""

import shutil
from pathlib import Path

import pytest

from flywheel_ml.core import paths
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.replay import launch, workspace
from flywheel_ml.flows.replay.params import ReplayParams
from flywheel_ml.utils.errors import Busy, ConfigError
from library.helpers import project


def start(**changes: object) -> None:
    launch.replay(project.PROJECT, ReplayParams(), Progress(), **changes)  # type: ignore[arg-type]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that was never trained, as the current folder."""
    path = project.make(tmp_path / "project", 50)
    monkeypatch.chdir(path)
    return path


def test_contract_without_time_is_one_line_with_the_remedy(fresh: Path) -> None:
    text = (fresh / paths.CONTRACT).read_text()
    (fresh / paths.CONTRACT).write_text(text.replace("role: time", "role: ignored"))
    project.commit(fresh, "No time")
    with pytest.raises(ConfigError, match="no column has role time, so rows have no order to replay; give the role"):
        start()
    assert not list(workspace.FOLDER.glob(f"*/{workspace.ANSWER}"))


def test_adopted_table_without_time_is_one_line_with_the_remedy(fresh: Path) -> None:
    lines = [
        "size,colour,bought",
        *(f"{at % 17},{'red' if at % 3 else 'blue'},{int(at % 17 > 8)}" for at in range(400)),
    ]
    (fresh.parent / "shop.csv").write_text("\n".join(lines))
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copyfile(project.ROOT / name, fresh / name)
    project.commit(fresh, "Files that adopting changes")
    done = project.cli(fresh, "replay", "--data", "../shop.csv", "--target", "bought")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: contract.yaml: no column has role time")
    assert line.endswith("(for DATA: TIME=column)")
    assert project.git(fresh, "status", "--porcelain") == ""


def test_second_replay_is_refused_in_one_line(fresh: Path) -> None:
    assert fresh
    with lock_project(workspace.FOLDER, "replay"), pytest.raises(Busy, match="another `replay` is running"):
        start()


def test_data_needs_a_target(fresh: Path) -> None:
    done = project.cli(fresh, "replay", "--data", "table.csv")
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["error: DATA and TARGET go together: make replay DATA=table.csv TARGET=column"],
    )


def test_project_without_a_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a replay starts from a commit, and this folder has none; run git init"):
        workspace.make_request(ReplayParams())


def test_folders_of_killed_replays_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with workspace.open_folder("killed") as folder:
        (folder / "half").write_text("half")
    with workspace.open_folder("next"):
        assert [path.name for path in workspace.FOLDER.glob("[!.]*")] == ["next"]


def test_environment_of_the_copy_has_no_store_and_no_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ML_PREDICTION_LOG", "ML_ALERT_WEBHOOK", "ML_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "http://elsewhere")
    found = workspace.build_environment(tmp_path)
    assert [name for name, value in found.items() if value == "http://elsewhere"] == []
