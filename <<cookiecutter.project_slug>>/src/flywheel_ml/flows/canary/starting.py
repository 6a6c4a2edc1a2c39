"""Starts a ramp: plans it from params.yaml and the champion's test, and makes the challenger a shadow."""

import secrets
from datetime import UTC, datetime

from flywheel_ml.core import paths
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.canary_params import CanaryParams
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.serving_folder import Routing
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.evidence import CanaryPlan, Loss, Step
from flywheel_ml.experiments.losses import choose_loss
from flywheel_ml.experiments.ramp import Ramp
from flywheel_ml.flows import rollout
from flywheel_ml.flows.bundles import open_champion
from flywheel_ml.model.registration.registry import Registry


def start(project: Project, settings: Settings, params: Params, number: str | None = None) -> Routing:
    """Start a ramp with a version, by default the challenger.

    Raises:
        ConfigError: params.yaml names a loss that the task does not have.
        ProjectError, GateRefusal: as `rollout.start`; also if an experiment is running.
    """
    registry = Registry.open(settings, Contract.load(paths.CONTRACT).name, project)
    _, champion = open_champion(project, settings)
    ramp = Ramp.begin(
        secrets.token_hex(4), make_plan(champion, params.canary), params.canary.settle_seconds, datetime.now(UTC)
    )
    return rollout.start_ramp(registry, settings, number, ramp)


def make_plan(champion: Bundle, params: CanaryParams) -> CanaryPlan:
    """Plan a canary: the margin is a share of the champion's mean loss on its test rows."""
    loss = choose_loss(champion.contract.task, params)
    tested = _find_test_loss(champion, loss)
    return CanaryPlan(
        margin=params.max_loss_increase * tested,
        loss=loss,
        comparison=params.comparison,
        # A row's log loss seldom changes by more than 1, a squared error by more than the mean one.
        loss_scale=tested if loss == "squared" else 1.0,
        max_error_rate=params.max_error_rate,
        min_latency_seconds=params.min_latency_ms / 1000,
        deadline_days=params.deadline_days,
        steps=(
            Step(min_rows=params.min_rows, min_labels=params.min_shadow_labels),
            *(Step(share=share, min_rows=params.min_rows, min_labels=params.min_labels) for share in params.shares),
        ),
    )


def _find_test_loss(champion: Bundle, loss: Loss) -> float:
    """Return the champion's mean loss on its test rows; at least a thousandth, because a margin is above 0."""
    tested = champion.manifest.metrics["test"]
    found = {
        "log": lambda: tested["log_loss"],
        "zero_one": lambda: 1 - tested["accuracy"],
        "squared": lambda: tested["rmse"] ** 2,
    }[loss]()
    return max(found, 1e-9 if loss == "squared" else 1e-3)
