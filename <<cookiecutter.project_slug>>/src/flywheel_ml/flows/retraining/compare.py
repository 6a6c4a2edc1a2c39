"""Compares a retrained model with the champion on recent labelled rows that neither was trained on."""

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core import bundle, metrics, paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.data import tables
from flywheel_ml.data.adoption.issues import SUSPICIOUS_SCORE, detect_leakage
from flywheel_ml.flows import training
from flywheel_ml.flows.retraining.logged_rows import read_labelled_rows
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import read_json, write_json

if TYPE_CHECKING:
    from flywheel_ml.flows.training import TrainingContext
    from flywheel_ml.model.registration.registry import Registry, Version

REPORT = paths.REPORTS / "comparison.json"
ENOUGH_LABELS, NO_LEAK = "enough recent labels", "no column reveals the target"


class Models(NamedTuple):
    """Both models, opened."""

    candidate: bundle.Bundle
    champion: bundle.Bundle


def compare_with_champion(context: "TrainingContext", with_log: bool) -> list[GateResult]:
    """Check the candidate against the champion on recent rows; write the figures to reports/comparison.json.

    Args:
        context: of the retraining, with the registry of the champion.
        with_log: whether the table has the labelled rows of the log already.
    """
    from flywheel_ml.model.registration.registry import CHAMPION

    champion = context.registry.find_alias(CHAMPION)
    if champion is None:
        write_json(REPORT, {"champion": None})
        return [GateResult(ENOUGH_LABELS, passed=True, reason="there is no champion yet")]
    with TemporaryDirectory() as scratch:
        try:
            opened = training.open_registered(
                context.project, context.registry, champion, context.settings, Path(scratch)
            )
            candidate = bundle.Bundle.open(paths.BUNDLE, features=context.project.features)
            rows = _collect_rows(context, champion, with_log)
            _check_comparable(candidate, opened, rows)
            checks, report = _check(context, Models(candidate, opened), rows)
        except ProjectError as error:
            reason = f"the champion cannot be compared: {str(error).replace(scratch, f'of version {champion.number}')}"
            checks, report = [GateResult(ENOUGH_LABELS, passed=False, reason=reason)], {}
    write_json(REPORT, {"champion": champion.number, **report})
    return checks


def _check_comparable(candidate: bundle.Bundle, champion: bundle.Bundle, rows: pl.DataFrame) -> None:
    if missing := [column.name for column in champion.contract.inputs if column.name not in rows.columns]:
        raise ProjectError(f"it needs the column '{missing[0]}', which the table no longer has")
    if (champion.manifest.target, champion.manifest.classes) != (candidate.manifest.target, candidate.manifest.classes):
        raise ProjectError("it predicts a different target or different classes")


def _collect_rows(context: "TrainingContext", champion: "Version", with_log: bool) -> pl.DataFrame:
    """Collect the test rows, and the later rows of the log, that the champion was not trained on."""
    contract, split = context.contract, read_json(paths.REPORTS / "split.json")
    test = tables.read_verified(paths.SPLITS["test"], split["test"]["sha256"])
    if not with_log:
        table = tables.read_verified(paths.TABLE, read_json(paths.REPORTS / "validation.json")["sha256"])
        until = context.params.data.until
        logged = read_labelled_rows(
            context.settings.prediction_log, contract, table, until and contract.to_time_zone(until)
        )
        test = pl.concat([test, logged.select(test.columns).cast(test.schema)])
    if contract.time is None:
        return test
    rows = test.sort(contract.time.name, maintain_order=True)
    last = _find_last_trained(context.registry, champion)
    return rows if last is None else rows.filter(pl.col(contract.time.name) > last)


def _find_last_trained(registry: "Registry", champion: "Version") -> datetime | None:
    """Find the last time of the champion's training and validation rows; None if it is not known."""
    split = registry.read_report(champion, "split.json")
    try:
        return max(datetime.fromisoformat(split[part]["last"]) for part in ("train", "validation"))
    except (TypeError, KeyError, ValueError):
        return None


def _check(context: "TrainingContext", models: Models, rows: pl.DataFrame) -> tuple[list[GateResult], dict[str, Any]]:
    """Run the checks in order; return them with the figures behind them."""
    params, least = context.params, context.params.monitor.min_labels
    leak = _check_leaks(context.contract, models)
    if rows.height < least:
        reason = (
            f"{rows.height:,} labelled rows that neither model was trained on, wanted {least:,} (monitor.min_labels); "
            "wait for more labels, or choose a later AS_OF"
        )
        return [GateResult(ENOUGH_LABELS, passed=False, reason=reason), leak], {"rows": rows.height}
    from flywheel_ml.model.evaluation import paired

    contract = context.contract
    candidate, champion = (
        one.predict(tables.to_columns(rows, one.contract.inputs)).output for one in (models.candidate, models.champion)
    )
    truth = tables.encode_target(rows, contract)
    weights = (
        np.ones(rows.height) if contract.weight is None else rows[contract.weight.name].cast(pl.Float64).to_numpy()
    )
    labelled = paired.LabelledRows(
        truth, candidate, champion, weights, paired.make_clusters(rows.height, contract.time is not None)
    )
    found = paired.compare(contract.task, labelled, params.retrain.confidence_level)
    headline = metrics.HEADLINE[contract.task]
    decision = metrics.DecisionRule(models.candidate.manifest.threshold or 0.5)
    recent = metrics.compute_metrics(contract.task, truth, candidate, decision, weights).get(headline)
    tested = models.champion.manifest.metrics.get("test", {}).get(headline)
    return [
        GateResult(ENOUGH_LABELS, passed=True, reason=f"{rows.height:,} labelled rows, wanted {least:,}"),
        leak,
        paired.check_kept_skill(contract.task, recent, tested, params.retrain),
        paired.check_comparison(found, params.retrain),
    ], {"rows": rows.height, "comparison": found.model_dump(mode="json")}


def _check_leaks(contract: Contract, models: Models) -> GateResult:
    """Refuse a column that predicts the target by itself, unless the champion uses it and is as good."""
    headline = metrics.HEADLINE[contract.task]
    known = {column.name for column in models.champion.contract.inputs}
    if models.champion.manifest.metrics["test"].get(headline, 0.0) <= SUSPICIOUS_SCORE:
        known = set()
    names = [column.name for column in contract.inputs if column.name not in known]
    for part in ("test", "train"):
        rows = pl.read_parquet(paths.SPLITS[part])
        if leaks := detect_leakage(rows, contract.target.name, names, contract.task):
            reason = f"'{leaks[0].column}' is {leaks[0].evidence} in the {part} rows; give it role ignored"
            return GateResult(NO_LEAK, passed=False, reason=f"{reason} in contract.yaml, or correct its source")
    return GateResult(NO_LEAK, passed=True, reason=f"none of {len(names)} columns predicts the target by itself")
