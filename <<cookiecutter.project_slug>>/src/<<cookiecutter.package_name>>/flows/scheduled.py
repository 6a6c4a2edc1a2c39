"""The flows as Prefect deployments, for prefect.yaml and `make schedules`."""

import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow, flow, serve
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from .. import stage
from ..errors import ConfigError
from ..params import Params
from ..settings import Settings
from ..strict import nearest
from . import done, engine
from . import monitoring as monitoring_flow
from . import scoring as scoring_flow
from . import training as training_flow
from .progress import Progress


@flow(name=training_flow.NAME)
def training() -> str:
    """Run the stages, judge, register, roll out; returns the version's role."""
    with engine.exclusive(done.FOLDER, "run"):
        return engine.inside(lambda: training_flow.train(Settings.read(), Progress())).role


@flow(name="scoring")
def scoring(source: str, output: str) -> int:
    """Score a table with the champion; returns its rows."""
    params = Params.load(stage.PARAMS).score
    return engine.inside(lambda: scoring_flow.score(Path(source), Path(output), Settings.read(), params)).rows


@flow(name="monitoring")
def monitoring(days: float = 1.0) -> str:
    """Monitor the predictions of the last days; returns the verdict."""
    since, params = datetime.now(UTC) - timedelta(days=days), Params.load(stage.PARAMS)
    found = engine.inside(lambda: monitoring_flow.watch(Settings.read(), params, None, since, None))
    return found.result.verdict


FLOWS: dict[str, Flow[..., Any]] = {"training": training, "scoring": scoring, "monitoring": monitoring}


def serve_all(path: Path) -> None:
    """Serve every deployment of prefect.yaml from this process until it is stopped.

    Raises:
        ConfigError: the file names a flow that does not exist.
    """
    # Prefect's own, when it is told to stop.
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited", RuntimeWarning)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    serve(*(_deployment(path, entry) for entry in content["deployments"]))


def _deployment(path: Path, entry: Mapping[str, Any]) -> Any:
    name = entry["entrypoint"].rpartition(".")[2]
    if name not in FLOWS:
        raise ConfigError(f"{path}: deployment '{entry['name']}' names the flow '{name}'; {nearest(name, list(FLOWS))}")
    return FLOWS[name].to_deployment(
        name=entry["name"],
        schedules=[Cron(found["cron"], timezone=found.get("timezone")) for found in entry.get("schedules", [])],
        parameters=entry.get("parameters", {}),
        description=entry.get("description"),
        # By the module's name: loaded from its file alone, its relative imports would fail.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
