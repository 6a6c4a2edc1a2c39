"""Serves the deployments of prefect.yaml, for `make schedules`."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow, serve
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError


def serve_deployments(project: Project, path: Path) -> None:
    """Serve every deployment of prefect.yaml from this process until it is stopped.

    Raises:
        ConfigError: the file names a flow that does not exist.
    """
    # Prefect raises this warning itself when it is stopped.
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited", RuntimeWarning)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    flows = {name: one for name, one in import_reference(f"{project.flows}:__dict__").items() if isinstance(one, Flow)}
    serve(*(_build_deployment(path, entry, flows) for entry in content["deployments"]))


def _build_deployment(path: Path, entry: Mapping[str, Any], flows: Mapping[str, Flow[..., Any]]) -> Any:
    name = entry["entrypoint"].rpartition(".")[2]
    if name not in flows:
        raise ConfigError(f"{path}: deployment '{entry['name']}' names the flow '{name}'; {suggest(name, list(flows))}")
    return flows[name].to_deployment(
        name=entry["name"],
        schedules=[Cron(found["cron"], timezone=found.get("timezone")) for found in entry.get("schedules", [])],
        parameters=entry.get("parameters", {}),
        description=entry.get("description"),
        # Load by module name: loading from the file alone would break relative imports.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
