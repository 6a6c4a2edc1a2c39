"""Whether a run went all the way to its end, told without starting a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import bundle, stage
from ..errors import ProjectError
from ..files import canonical, read_json, sha256_file, sha256_text, write_json
from ..model import gate
from ..params import Params
from ..serving import routing
from ..settings import Settings

FOLDER = Path("var")
STATE = FOLDER / "run.json"


def record(settings: Settings, params: Params, outcome: Mapping[str, Any]) -> None:
    """Note that the present bundle, judged by the present gates, was taken to its end."""
    write_json(STATE, {**outcome, **_state(settings, params)})


def last(settings: Settings, params: Params) -> Mapping[str, Any] | None:
    """The outcome of the last run, if bundle, gates, registry and serving folder still are what they led to."""
    try:
        found: Mapping[str, Any] = read_json(STATE)
        if any(found.get(key) != value for key, value in _state(settings, params).items()):
            return None
        champion = routing.read(settings.serving_folder).champion if found["role"] != "refused" else None
        if champion:
            bundle.verify(routing.bundle_folder(settings.serving_folder, champion), champion.digest)
            # Promoted or rolled back since: only a run can say what the version is now.
            if (champion.version == found["version"]) != (found["role"] == "champion"):
                return None
    except (OSError, ValueError, KeyError, ProjectError):
        return None
    return found


def _state(settings: Settings, params: Params) -> dict[str, str]:
    thresholds = params.model_dump(mode="json", include={"gates", "rollout"})
    file = settings.tracking_uri.removeprefix("sqlite:///")
    is_gone = file != settings.tracking_uri and not Path(file).is_file()
    return {
        "bundle": sha256_file(stage.BUNDLE / bundle.MANIFEST),
        "gates": sha256_text(canonical(thresholds) + sha256_file(Path(gate.__file__))),
        "registry": "missing" if is_gone else settings.tracked_at,
    }
