"""The flows of this project, step by step. A step of your own goes where it belongs.

`engine.task("name", function, ...)` runs a function as a Prefect task, with retries. prefect.yaml says when the flows
at the end of this file run; `make run`, `make retrain`, `make score` and `make monitor` run the same steps by hand.
"""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import monitoring as monitor
from flywheel_ml.flows import retention, run_state
from flywheel_ml.flows import scoring as batch
from flywheel_ml.flows import training as steps
from flywheel_ml.flows.canary import scheduled
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.retraining import launch, policy
from flywheel_ml.flows.retraining import steps as again
from prefect import flow

from .project import PROJECT


def train(context: steps.TrainingContext) -> steps.TrainingResult:
    """Raw table → stages → gates → registry → serving folder. Every step is idempotent: a rerun completes a crash."""
    steps.recover_registry(context)
    steps.fetch_raw_data(context)
    steps.run_stages(context)
    checks = steps.check_gates(context)
    version = steps.register_version(context, checks)
    steps.roll_out(context)
    return steps.finish(context, version, checks)


def retrain(context: again.RetrainingContext) -> again.RetrainingResult:
    """In a copy of the project: newer rows → stages → gates, and the champion on recent rows → branch → registry."""
    again.collect_data(context)
    steps.fetch_raw_data(context.training)
    steps.run_stages(context.training)
    checks = [*steps.check_gates(context.training), *again.compare(context)]
    again.commit_branch(context)
    version = steps.register_version(context.training, checks)
    steps.roll_out(context.training)
    return again.finish(context, version, checks)


@flow(name="training")
def training() -> str:
    """Train if anything changed; returns the role of the version."""
    with engine.lock_project(run_state.FOLDER, "run"):
        return engine.call_in_flow(
            lambda: train(steps.TrainingContext.begin(PROJECT, Settings.read(), Progress()))
        ).role


@flow(name="retraining")
def retraining(as_of: str = "", with_log: bool = False) -> str:
    """Train the last commit on the rows before a date, by default on all; returns the role of the version."""
    settings, progress = Settings.read(), Progress()
    return engine.call_in_flow(lambda: launch.retrain(PROJECT, settings, progress, as_of, with_log)).role


@flow(name="scoring")
def scoring(source: str, output: str) -> int:
    """Score a table with the champion; returns the number of rows."""
    params = PROJECT.load_params().score
    return engine.call_in_flow(lambda: batch.score(PROJECT, Path(source), Path(output), Settings.read(), params)).rows


@flow(name="monitoring")
def monitoring(days: float = 1.0) -> str:
    """Monitor the predictions of the last days, and carry out the policy of params.yaml; returns the verdict."""
    since, params, settings = datetime.now(UTC) - timedelta(days=days), PROJECT.load_params(), Settings.read()
    watch = partial(monitor.monitor_window, PROJECT, settings, params, None, since, None)
    return engine.call_in_flow(lambda: policy.act_on(PROJECT, settings, params, watch)).result.verdict


@flow(name="canary")
def canary() -> str:
    """Look at the running canary, and carry out what is decided; returns the action."""
    settings, params = Settings.read(), PROJECT.load_params()
    return engine.call_in_flow(lambda: scheduled.look_or_start(PROJECT, settings, params)).action


@flow(name="log_prune")
def log_prune() -> int:
    """Prune the prediction log to ML_LOG_MAX_AGE and ML_LOG_MAX_SIZE, if they are set; returns the deleted rows."""
    return engine.call_in_flow(lambda: retention.prune_to_limits(PROJECT, Settings.read()))
