"""The wheel turns to its end whatever stopped it before; a bundle is registered once and gets its due role."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.metrics import HEADLINE, LOSS
from flywheel_ml.core.params import Params, RolloutParams
from flywheel_ml.flows import rollout, training
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.utils.files import write_json
from library.helpers import project, store
from library.helpers.commands import find_served_bundle
from library.helpers.project import PROJECT


def test_a_run_that_is_killed_in_a_stage_leaves_no_process_behind(trained_project: project.PipelineRuns) -> None:
    assert trained_project.killed == -9
    assert trained_project.servers_left == []


def test_after_a_kill_the_next_run_completes(trained_project: project.PipelineRuns) -> None:
    assert trained_project.first.returncode == 0, trained_project.first.stderr
    assert "Version 1: champion" in trained_project.first.stdout
    assert trained_project.first.stderr == ""
    assert project.leftovers(trained_project.path) == []


def test_the_run_is_in_mlflow_with_parameters_figures_and_reports(trained_project: project.PipelineRuns) -> None:
    client = MlflowClient(f"sqlite:///{trained_project.path}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.hist_gradient_boosting.max_iter"] == "15"
    task = Contract.load(trained_project.path / paths.CONTRACT).task
    wanted = {f"test.{HEADLINE[task]}", f"linear.{HEADLINE[task]}", f"prior.{LOSS[task]}"}
    assert wanted <= set(run.data.metrics)
    assert {found.path for found in client.list_artifacts(run.info.run_id)} >= {"reports", "model"}
    assert {found.path for found in client.list_artifacts(run.info.run_id, "reports")} >= {
        "reports/evaluation.png",
        "reports/metrics.json",
        "reports/data_card.md",
    }


def test_the_killed_run_ends_as_crashed_in_prefect(trained_project: project.PipelineRuns) -> None:
    assert "1 killed run(s) marked as crashed" in trained_project.first.stdout


def test_what_serves_is_what_was_packaged(trained_project: project.PipelineRuns) -> None:
    now = serving_folder.read_routing(trained_project.path / "var" / "serving")
    assert now.champion is not None
    served = serving_folder.bundle_folder(trained_project.path / "var" / "serving", now.champion)
    assert bundle.verify(served, now.champion.digest) == bundle.verify(trained_project.path / paths.BUNDLE)


def test_lineage_and_audit_say_where_the_champion_came_from(trained_project: project.PipelineRuns) -> None:
    folder = trained_project.path / "var" / "serving"
    lineage = json.loads((find_served_bundle(folder, "1") / bundle.LINEAGE).read_text())
    assert lineage["git_commit"] == project.git(trained_project.path, "rev-parse", "HEAD").strip()
    assert lineage["dvc_lock_sha256"]
    assert [(entry["from"], entry["to"], entry["why"]) for entry in rollout.read_audit(folder)] == [
        (None, "1", "first champion")
    ]


def test_a_second_run_does_nothing_and_says_what_is_not_in_git(trained_project: project.PipelineRuns) -> None:
    lines = trained_project.again.stdout.splitlines()
    assert trained_project.again.returncode == 0
    assert "nothing changed since the last run" in lines[0]
    assert lines[1].startswith("Up to date: version 1, champion.")
    assert lines[2].endswith(
        "git add dvc.lock profile_bins.json compute_baseline.json 'data/*.dvc' reports && git commit"
    )
    assert len(lines) == 3


def test_no_tool_talks_to_anybody_outside_this_machine(trained_project: project.PipelineRuns) -> None:
    outside = {place for place in trained_project.places if not place.startswith(("127.", "/"))}
    assert outside <= {"localhost", "::1"}
    assert any(place.startswith("127.") for place in trained_project.places), "the spy saw nothing at all"
    # Compiled code escapes the spy; ONNX Runtime's reporter would keep its notes here.
    assert not (trained_project.path.parent / ".cache" / "Microsoft").exists()


def test_every_stage_of_the_graph_is_a_line_of_the_run(trained_project: project.PipelineRuns) -> None:
    stages = yaml.safe_load((trained_project.path / "dvc.yaml").read_text())["stages"]
    told = [line.split()[1] for line in trained_project.first.stdout.splitlines() if line.startswith(("✓", "·"))]
    assert [name for name in told if name in stages] == list(stages)


@pytest.fixture
def packaged(registry: Registry, bundle_path: Path, folder: Path, trained_project: project.PipelineRuns) -> Registry:
    """An empty registry in a folder where the stages have left a bundle and their reports."""
    shutil.copytree(bundle_path, folder / paths.BUNDLE)
    shutil.copytree(trained_project.path / paths.REPORTS, folder / paths.REPORTS)
    return registry


def test_a_bundle_is_registered_once_for_each_verdict(packaged: Registry, contract: Contract, params: Params) -> None:
    def number(checks: list[GateResult]) -> str:
        return training.register_bundle(packaged, contract, params, checks).number

    assert [number(checks) for checks in (store.PASSED_CHECKS, store.PASSED_CHECKS)] == ["1", "1"]
    assert [number(checks) for checks in (store.FAILED_CHECKS, store.PASSED_CHECKS, store.FAILED_CHECKS)] == [
        "2",
        "1",
        "2",
    ]


def test_the_first_to_pass_is_champion_and_later_ones_challenge(
    registry: Registry, bundle_path: Path, tmp_path: Path, params: Params
) -> None:
    def role(name: str, checks: list[GateResult], chosen: Params = params) -> str:
        version = registry.register(store.copy_with_new_card(bundle_path, tmp_path / name), checks, {}, {}, [])
        return training.assign_role(registry, version, chosen)

    assert role("1", store.FAILED_CHECKS) == "refused"
    assert role("2", store.PASSED_CHECKS) == "champion"
    assert training.assign_role(registry, registry.get("2"), params) == "champion"
    assert role("3", store.PASSED_CHECKS) == "challenger"
    at_once = params.model_copy(update={"rollout": RolloutParams(auto_promote=True)})
    assert role("4", store.FAILED_CHECKS, at_once) == "refused"
    assert role("5", store.PASSED_CHECKS, at_once) == "champion"
    aliases = {alias: found.number for alias in ("champion", "challenger") if (found := registry.find_alias(alias))}
    assert aliases == {"champion": "5", "challenger": "3"}


@pytest.mark.chaos
def test_a_refused_model_does_not_serve_when_the_registry_is_lost(finished: Path) -> None:
    before = serving_folder.read_routing(finished / "var" / "serving")
    (finished / "mlflow.db").unlink()
    shutil.rmtree(finished / "mlartifacts")
    project.set_params(
        finished, {"train": {"hist_gradient_boosting": {"max_iter": 1}}, "gates": {"max_drop_from_champion": 0.0}}
    )
    again = project.cli(finished, "run")
    assert again.returncode == 1, again.stdout
    assert "the registry was lost: version 1 still serves, and is registered as 1" in again.stdout
    assert "REFUSED keeps up with the champion" in again.stdout
    assert "Version 2: refused" in again.stdout
    assert serving_folder.read_routing(finished / "var" / "serving") == before


def test_unavailable_champion_is_a_reason_not_a_crash(finished: Path) -> None:
    contract = Contract.load(paths.CONTRACT)
    settings = store.settings(finished)
    registry = Registry.open(settings, contract.name)
    same = training.compare_with_champion(PROJECT, registry, settings, contract)
    # The stages judged scikit-learn's answers, which are of double precision where the target is a number.
    assert same.champion_score == pytest.approx(same.manifest.metrics["test"][HEADLINE[contract.task]], rel=1e-6)
    shutil.rmtree(settings.serving_folder)
    assert training.compare_with_champion(PROJECT, registry, settings, contract) == same, (
        "from the registry, where the served copy is lost"
    )
    shutil.rmtree(finished / "mlartifacts")
    lost = training.compare_with_champion(PROJECT, registry, settings, contract)
    assert "cannot be downloaded" in lost.champion_problem


def test_a_champion_of_other_classes_is_not_compared(finished: Path) -> None:
    contract = Contract.load(paths.CONTRACT)
    facts = bundle.verify(paths.BUNDLE).model_dump(exclude={"files"})
    bundle.write_manifest(paths.BUNDLE, {**facts, "classes": ["one", "other"]})
    settings = store.settings(finished)
    found = training.compare_with_champion(PROJECT, Registry.open(settings, contract.name), settings, contract)
    assert found.champion_problem == "it predicts a different target or different classes"


def test_nested_parameters_are_logged_by_their_path() -> None:
    assert training.flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_split_step_reports_few_or_seen_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: Contract, params: Params
) -> None:
    monkeypatch.chdir(tmp_path)
    least = params.monitor.min_rows

    def told(rows: int, in_train: int) -> str:
        write_json(paths.REPORTS / "split.json", {"test": {"rows": rows, "in_train": in_train}})
        return training._summarize_stage("split", contract, params)

    assert told(least, 0) == ""
    assert (
        told(least - 1, 0) == f"{least - 1} rows in the test split, too few for monitoring (monitor.min_rows: {least})"
    )
    assert told(least, 3).startswith(f"3 of {least} test rows equal a training row")
    assert told(1, 1).count(";") == 1
