"""The wheel turns to its end, whatever stops it on the way, and what the gates refuse changes nothing."""

import json

import yaml
from mlflow import MlflowClient

from << cookiecutter.package_name >> import bundle, stage
from << cookiecutter.package_name >>.flows import rollout
from << cookiecutter.package_name >>.serving import routing

from .. import project


def test_a_run_that_is_killed_in_a_stage_leaves_no_server_behind(turned: project.Turned) -> None:
    assert turned.killed == [-9, -9, -9]
    assert turned.servers_left == []


def test_after_three_kills_the_next_run_completes(turned: project.Turned) -> None:
    assert turned.first.returncode == 0, turned.first.stderr
    assert "Version 1: champion" in turned.first.stdout
    assert turned.first.stderr == ""
    assert project.leftovers(turned.path) == []


def test_one_bundle_is_registered_once_however_often_its_run_was_killed(turned: project.Turned) -> None:
    client = MlflowClient(f"sqlite:///{turned.path}/mlflow.db")
    versions = client.search_model_versions()
    assert [int(version.version) for version in versions] == [1]
    assert {run.info.status for run in client.search_runs(["1"])} == {"FINISHED"}


def test_the_killed_run_ends_as_crashed_in_prefect(turned: project.Turned) -> None:
    assert "1 killed run(s) marked as crashed" in turned.first.stdout


def test_what_serves_is_what_was_packaged(turned: project.Turned) -> None:
    now = routing.read(turned.path / "var" / "serving")
    assert now.champion is not None
    served = routing.bundle_folder(turned.path / "var" / "serving", now.champion)
    assert bundle.verify(served, now.champion.digest) == bundle.verify(turned.path / stage.BUNDLE)


def test_lineage_and_audit_say_where_the_champion_came_from(turned: project.Turned) -> None:
    folder = turned.path / "var" / "serving"
    lineage = json.loads((folder / routing.BUNDLES / "1" / bundle.LINEAGE).read_text())
    assert lineage["git_commit"] == project.git(turned.path, "rev-parse", "HEAD").strip()
    assert lineage["dvc_lock_sha256"]
    assert [(entry["from"], entry["to"], entry["why"]) for entry in rollout.audit(folder)] == [
        (None, "1", "first champion")
    ]


def test_a_second_run_does_nothing_and_says_what_is_not_in_git(turned: project.Turned) -> None:
    lines = turned.again.stdout.splitlines()
    assert turned.again.returncode == 0
    assert "nothing changed since the last run" in lines[0]
    assert lines[1].startswith("Up to date: version 1, champion.")
    assert lines[2].endswith("git add dvc.lock 'data/*.dvc' reports && git commit")
    assert len(lines) == 3


def test_no_tool_talks_to_anybody_outside_this_machine(turned: project.Turned) -> None:
    outside = {place for place in turned.places if not place.startswith(("127.", "/"))}
    assert outside <= {"localhost", "::1"}
    assert any(place.startswith("127.") for place in turned.places), "the spy saw nothing at all"


def test_every_stage_of_the_graph_is_a_line_of_the_run(turned: project.Turned) -> None:
    stages = yaml.safe_load((turned.path / "dvc.yaml").read_text())["stages"]
    told = [line.split()[1] for line in turned.first.stdout.splitlines() if line.startswith(("✓", "·"))]
    assert [name for name in told if name in stages] == list(stages)
