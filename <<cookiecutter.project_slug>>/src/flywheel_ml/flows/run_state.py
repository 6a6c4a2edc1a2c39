"""Detects whether the last run completed and nothing has changed since, without starting a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.model.evaluation import gate
from flywheel_ml.model.registration import roles
from flywheel_ml.model.registration.roles import State
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import canonical_json, read_json, sha256_file, sha256_text, write_json

FOLDER = Path("var")
STATE_FILE = FOLDER / "run.json"


def record_run(project: Project, settings: Settings, params: Params, outcome: Mapping[str, Any]) -> None:
    """Record that the run of the current bundle and gates completed."""
    write_json(STATE_FILE, {**outcome, **_compute_state(project, settings, params)})


def find_last_run(project: Project, settings: Settings, params: Params) -> Mapping[str, Any] | None:
    """Return the result of the last run if it is still up to date, else None.

    It is up to date if bundle, gates and flows are unchanged, and registry and serving folder agree on the champion.
    Promotions and rollbacks may have happened since: `role` is the version's current role, `champion` the number of
    the current champion.
    """
    try:
        found: Mapping[str, Any] = read_json(STATE_FILE)
        state = _compute_state(project, settings, params)
        if any(found.get(key) != value for key, value in state.items()):
            return None
        now = _read_registered_state(settings, found["version"])
        if now is None or now.digest != state["bundle"] or now.champion != _find_served_champion(settings):
            return None
    except (OSError, ValueError, KeyError, ProjectError):
        return None
    return {**found, "role": now.role, "champion": now.champion[0] if now.champion else None}


def _read_registered_state(settings: Settings, number: str) -> State | None:
    name = Contract.load(paths.CONTRACT).name
    if not settings.has_tracking_server:
        return roles.read_state(settings, name, number)
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(settings, name).get_state(number)


def _find_served_champion(settings: Settings) -> tuple[str, str] | None:
    """Return number and digest of the champion that serves; raise if its bundle is missing or damaged."""
    if not (settings.serving_folder / serving_folder.ROUTING).is_file():
        return None
    champion = serving_folder.read_routing(settings.serving_folder).champion
    if champion is None:
        return None
    bundle.verify(serving_folder.bundle_folder(settings.serving_folder, champion), champion.digest)
    return champion.version, champion.digest


def _compute_state(project: Project, settings: Settings, params: Params) -> dict[str, str]:
    thresholds = params.model_dump(mode="json", include={"gates", "rollout"})
    own = (project.folder / "gates.py", project.folder / "flows.py")
    code = "".join(sha256_file(path) for path in (Path(gate.__file__), *own) if path.is_file())
    file = settings.tracking_uri.removeprefix("sqlite:///")
    is_gone = file != settings.tracking_uri and not Path(file).is_file()
    return {
        "bundle": sha256_file(paths.BUNDLE / bundle.MANIFEST),
        "gates": sha256_text(canonical_json(thresholds) + code),
        "registry": "missing" if is_gone else settings.masked_tracking_uri,
    }
