"""The flows of this project, step by step. A step of your own goes where it belongs.

`engine.task("name", function, ...)` runs a function as a Prefect task, with retries. prefect.yaml says when the flows
at the end of this file run; `make run`, `make score` and `make monitor` run the same steps by hand.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import monitoring as monitor
from flywheel_ml.flows import retention, run_state
from flywheel_ml.flows import scoring as batch
from flywheel_ml.flows import training as steps
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.flows.progress import Progress
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


@flow(name="training")
def training() -> str:
    """Train if anything changed; returns the role of the version."""
    with engine.lock_project(run_state.FOLDER, "run"):
        return engine.call_in_flow(
            lambda: train(steps.TrainingContext.begin(PROJECT, Settings.read(), Progress()))
        ).role


@flow(name="scoring")
def scoring(source: str, output: str) -> int:
    """Score a table with the champion; returns the number of rows."""
    params = PROJECT.load_params().score
    return engine.call_in_flow(lambda: batch.score(PROJECT, Path(source), Path(output), Settings.read(), params)).rows


@flow(name="monitoring")
def monitoring(days: float = 1.0) -> str:
    """Monitor the predictions of the last days; returns the verdict."""
    since, params = datetime.now(UTC) - timedelta(days=days), PROJECT.load_params()
    watch = monitor.monitor_window
    return engine.call_in_flow(lambda: watch(PROJECT, Settings.read(), params, None, since, None)).result.verdict


@flow(name="log_prune")
def log_prune() -> int:
    """Prune the prediction log to ML_LOG_MAX_AGE and ML_LOG_MAX_SIZE, if they are set; returns the deleted rows."""
    return engine.call_in_flow(lambda: retention.prune_to_limits(PROJECT, Settings.read()))
