"""A retraining gives a branch and a version, and leaves the working tree, the index and no lock behind."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
import yaml
from mlflow import MlflowClient

from flywheel_ml.core import bundle, paths
from flywheel_ml.flows.retraining import compare
from flywheel_ml.utils.files import read_json
from library.helpers import project, retraining


class Retrained(NamedTuple):
    """A project with uncommitted edits that was retrained: the result, and its files before and after."""

    path: Path
    done: subprocess.CompletedProcess[str]
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def retrained(trained_project: project.PipelineRuns, tmp_path_factory: pytest.TempPathFactory) -> Retrained:
    path = project.copy(trained_project.path, tmp_path_factory.mktemp("retrained") / "project", history=True)
    project.set_params(path, {"gates": {"significance_level": 1e-9}})
    project.commit(path, "Trained")
    retraining.add_newer_rows(path)
    # An edit in the index, one in the working tree, and a new file: none may take part or change.
    project.set_params(path, {"seed": 99})
    project.git(path, "add", "params.yaml")
    (path / "src" / project.PACKAGE / "gates.py").write_text("this is not Python")
    (path / "notes.txt").write_text("mine")
    before = retraining.hash_untouched(path)
    done = project.cli(path, "retrain", "--with-log")
    return Retrained(path, done, before, retraining.hash_untouched(path))


def find_branch(path: Path) -> str:
    (branch,) = project.git(path, "branch", "--list", "retrain/*", "--format", "%(refname:short)").split()
    return branch


def test_retraining_gives_a_challenger(retrained: Retrained) -> None:
    assert retrained.done.returncode == 0, retrained.done.stderr + retrained.done.stdout
    assert retrained.done.stderr == ""
    assert f"Version 2: challenger, on branch {find_branch(retrained.path)}" in retrained.done.stdout


def test_retraining_leaves_the_working_tree_and_the_index_alone(retrained: Retrained) -> None:
    assert retrained.after == retrained.before


def test_retraining_leaves_no_lock_and_no_folder(retrained: Retrained) -> None:
    left = [path.name for path in (retrained.path / "var" / "retrain").iterdir()]
    assert sorted(left) == [".begin.lock", ".begin.pid"]


def test_branch_restores_everything(retrained: Retrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.copy(retrained.path, tmp_path / "project")
    monkeypatch.chdir(path)
    project.git(path, "checkout", "--quiet", "--force", find_branch(path))
    assert project.run(path, "-m", "dvc", "checkout", "--quiet", "--force").returncode == 0
    assert "up to date" in project.run(path, "-m", "dvc", "status").stdout
    assert project.git(path, "status", "--porcelain").splitlines() == ["?? notes.txt"]
    assert read_json(paths.REPORTS / "ingest.json")["rows"] == 4000 + retraining.LOGGED
    assert pl.read_parquet(paths.TABLE).height == 4000 + retraining.LOGGED
    (version,) = MlflowClient(f"sqlite:///{path}/mlflow.db").search_model_versions("name = 'flights'", max_results=1)
    assert bundle.verify(paths.BUNDLE, version.tags["bundle_sha256"])
    assert read_json(compare.REPORT)["comparison"]["rows"] > 200


def test_version_names_the_commit_of_its_branch(retrained: Retrained) -> None:
    client = MlflowClient(f"sqlite:///{retrained.path}/mlflow.db")
    (newest,) = client.search_model_versions("name = 'flights'", max_results=1)
    tags = client.get_run(newest.run_id).data.tags
    commit = project.git(retrained.path, "rev-parse", find_branch(retrained.path)).strip()
    assert (int(newest.version), tags["git_commit"], tags["git_dirty"]) == (2, commit, "False")


@pytest.mark.full
def test_refusal_is_one_line_with_the_remedy(retrained: Retrained, tmp_path: Path) -> None:
    path = project.copy(retrained.path, tmp_path / "project", history=True)
    # The state of the branch again: no stage has to run.
    project.git(path, "checkout", "--quiet", "--force", find_branch(path))
    assert project.run(path, "-m", "dvc", "checkout", "--quiet", "--force").returncode == 0
    project.set_params(path, {"monitor": {"min_labels": 5000}})
    project.commit(path, "More labels")
    until = yaml.safe_load((path / paths.PARAMS).read_text())["data"]["until"]
    done = project.cli(path, "retrain", "--as-of", until)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: version 3 was refused: enough recent labels:")
    assert "wanted 5,000 (monitor.min_labels); wait for more labels, or choose a later AS_OF" in line
    routing = json.loads((path / "var" / "serving" / "routing.json").read_text())
    assert routing["champion"]["version"] == "1"
