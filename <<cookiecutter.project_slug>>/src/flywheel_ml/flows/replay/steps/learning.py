"""Trains the first model, and later ones on the rows whose labels had arrived; the steps are those of `flows.py`."""

import time
from collections.abc import Callable

from flywheel_ml.core import bundle, paths
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.params import RolloutParams
from flywheel_ml.core.project import import_reference
from flywheel_ml.data.adoption.writing import render_values
from flywheel_ml.flows.replay.context import ReplayContext, make_silent_progress
from flywheel_ml.flows.retraining.compare import REPORT
from flywheel_ml.flows.retraining.request import Request
from flywheel_ml.flows.retraining.request import Workspace as RetrainingWorkspace
from flywheel_ml.flows.retraining.steps import RetrainingContext, RetrainingResult
from flywheel_ml.flows.training import TrainingContext, TrainingResult
from flywheel_ml.flows.versioning import git
from flywheel_ml.monitoring.quality import DECIDING_METRIC
from flywheel_ml.monitoring.replay.result import FirstModel, Retrained
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import GateRefusal
from flywheel_ml.utils.files import read_json, replacing

ONLY_NEEDED = {"train": {"sklearn_default": False}}
"""Parameters that save the fit of a model that is only reported next to the others."""


def train_first(context: ReplayContext) -> FirstModel:
    """Train the first model on the periods before the replay; it becomes champion and is the frozen one.

    Raises:
        GateRefusal: a gate refused it, so nothing could serve.
    """
    start, timeline, raw = time.perf_counter(), context.timeline, context.params.data.raw
    now = timeline.list_parts(timeline.trained - 1)[-1]
    until = timeline.find_until(now)
    with context.progress.step("train", "first model") as step:
        timeline.write_known(now, raw)
        before = paths.PARAMS.read_text(encoding="utf-8")
        with replacing(paths.PARAMS) as part:
            part.write_text(
                render_values(before, {"data": {"until": until.isoformat()}, **ONLY_NEEDED}), encoding="utf-8"
            )
        train: Callable[[TrainingContext], TrainingResult] = import_reference(f"{context.project.flows}:train")
        found = train(_silence(TrainingContext.begin(context.project, context.settings, make_silent_progress())))
        if found.role != "champion":
            failed = [check for check in found.checks if not check.passed]
            raise GateRefusal(
                f"the first model, of rows before {until:%F}, was refused and cannot serve: {failed[0].gate}: "
                f"{failed[0].reason}; train on more periods (TRAIN=), or change the gate in params.yaml"
            )
        manifest, split = bundle.verify(paths.BUNDLE), read_json(paths.REPORTS / "split.json")
        rows = sum(one["rows"] for one in split.values())
        tested = manifest.metrics["test"].get(DECIDING_METRIC[context.contract.task])
        step.note = f"version {found.version}: {formatting.rows(rows)} before {until:%F}"
    return FirstModel(
        version=found.version,
        estimator=manifest.estimator,
        first=timeline.periods[0].start,
        until=until,
        rows=rows,
        tested=tested,
        seconds=round(time.perf_counter() - start, 1),
    )


def retrain(context: ReplayContext, now: int) -> Retrained:
    """Retrain on the rows whose labels have arrived when part `now` has been sent, and compare with the champion.

    Raises:
        ProjectError: a step failed.
    """
    until = context.timeline.find_until(now)
    commit = git.get_commit()
    request = Request(
        id=f"{until:%Y%m%d}-{now:04d}", commit=commit, asked=until.isoformat(), until=until.isoformat(), with_log=False
    )
    workspace = RetrainingWorkspace(context.workspace.folder / f"retrain-{request.id}", request)
    source = workspace.folder / "source"
    context.timeline.write_known(now, source / context.params.data.raw)
    begun = RetrainingContext.begin(context.project, context.settings, make_silent_progress(), workspace, source)
    steps: Callable[[RetrainingContext], RetrainingResult] = import_reference(f"{context.project.flows}:retrain")
    found = steps(begun._replace(training=_silence(begun.training)))
    return Retrained(
        version=found.version,
        role=found.role,
        until=f"{until:%F}",
        rows=found.rows,
        refusal=found.refusal,
        comparison=_describe_comparison(context),
    )


def _silence(context: TrainingContext) -> TrainingContext:
    """Without automatic promotion: a canary decides."""
    return context._replace(params=context.params.model_copy(update={"rollout": RolloutParams()}))


def _describe_comparison(context: ReplayContext) -> str:
    compared = read_json(REPORT).get("comparison") if REPORT.is_file() else None
    if compared is None:
        return ""
    headline = formatting.METRIC_NAMES[HEADLINE[context.contract.task]]
    score = bundle.verify(paths.BUNDLE).metrics["test"].get(HEADLINE[context.contract.task])
    tested = "" if score is None else f"{headline} {score:.4f} on its test rows; "
    return (
        f"{tested}{compared['loss']} {compared['candidate']:.4g} against {compared['champion']:.4g} of the champion "
        f"on {formatting.rows(compared['rows'])}"
    )
