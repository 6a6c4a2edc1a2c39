"""A candidate is compared with the champion on recent labels, and refused where they do not speak for it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from flywheel_ml.cli.stages import STAGES
from flywheel_ml.core import paths
from flywheel_ml.flows import training
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.retraining import compare
from flywheel_ml.model.evaluation import paired
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.utils.files import read_json
from library.helpers import project, store
from library.helpers.project import PROJECT


def check(path: Path) -> dict[str, GateResult]:
    """Run the stages without DVC, and compare the result with the champion; gate → result."""
    for name in STAGES.values():
        import_module(name).main(PROJECT)
    context = training.TrainingContext.begin(PROJECT, store.settings(path), Progress())
    return {found.gate: found for found in compare.compare_with_champion(context, with_log=False)}


def refused(checks: dict[str, GateResult]) -> set[str]:
    return {name for name, found in checks.items() if not found.passed}


def change_table(change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    project.write_raw(Path(), change(pl.read_parquet(project.RAW)))


def test_equal_candidate_passes_every_comparison(finished: Path) -> None:
    checks = check(finished)
    assert refused(checks) == set()
    found = read_json(compare.REPORT)["comparison"]
    assert (found["difference"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_swapped_labels_of_the_newest_rows_are_refused(finished: Path) -> None:
    newest = pl.col("scheduled_departure") >= pl.col("scheduled_departure").max() - pl.duration(days=20)
    swapped = newest & (pl.int_range(pl.len()).hash(seed=1) % 10 < 3)
    change_table(lambda table: table.with_columns(late=pl.col("late") ^ swapped))
    checks = check(finished)
    assert refused(checks) == {paired.KEPT_SKILL}
    assert "check the newest labels" in checks[paired.KEPT_SKILL].reason


def test_copy_of_the_target_among_the_features_is_refused(finished: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(paths.CONTRACT.read_text())
    content["columns"].append({"name": "arrived_late", "type": "boolean"})
    paths.CONTRACT.write_text(yaml.safe_dump(content, sort_keys=False))
    change_table(lambda table: table.with_columns(arrived_late=pl.col("late")))
    checks = check(finished)
    assert refused(checks) == {compare.NO_LEAK}
    assert checks[compare.NO_LEAK].reason.startswith("'arrived_late' is a copy of the target in the test rows")


def test_worse_candidate_is_refused(finished: Path) -> None:
    before = read_json(paths.REPORTS / "metrics.json")["test"]["roc_auc"]
    noisy = {"hist_gradient_boosting": {"max_iter": 2, "max_leaf_nodes": 2, "learning_rate": 0.01}}
    project.set_params(finished, {"train": noisy})
    checks = check(finished)
    assert before - read_json(paths.REPORTS / "metrics.json")["test"]["roc_auc"] > 0.05
    assert paired.GATE in refused(checks)


def test_too_few_labels_are_refused(finished: Path) -> None:
    project.set_params(finished, {"monitor": {"min_labels": 5000}})
    checks = check(finished)
    assert refused(checks) == {compare.ENOUGH_LABELS}
    assert "wanted 5,000 (monitor.min_labels); wait for more labels" in checks[compare.ENOUGH_LABELS].reason


def test_rows_that_the_champion_was_trained_on_do_not_count(finished: Path) -> None:
    # The candidate's test rows begin 30 days earlier than the champion's, in rows that the champion has learned from.
    project.set_params(finished, {"split": {"test_days": 50}})
    before = read_json(paths.REPORTS / "split.json")["test"]["rows"]
    check(finished)
    assert read_json(paths.REPORTS / "split.json")["test"]["rows"] > before
    assert read_json(compare.REPORT)["rows"] == before
