"""Keeps a serving folder equal to the registry, and restores the champion of a registry that was lost."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Never

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.serving_folder import BundleRef, Routing
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.rollout.plan import read_plan_for
from flywheel_ml.flows.rollout.serving import apply_plan, describe_routing, lock_rollout, serve_champion
from flywheel_ml.flows.rollout.versions import get_champion
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.registration.registry import CHAMPION, Registry, Version
from flywheel_ml.model.registration.store import describe_error
from flywheel_ml.utils.errors import IntegrityError, ProjectError
from flywheel_ml.utils.files import read_json


def sync(registry: Registry, settings: Settings, why: str) -> Routing:
    """Bring the serving folder in line with the registry; safe to repeat, also after a crash.

    Raises:
        ProjectError: the registry has no champion.
        IntegrityError: the downloaded bundle differs from the registered one.
    """
    with lock_rollout(settings.serving_folder):
        champion = get_champion(registry)
        routing = serve_champion(registry, champion, settings, why)
        return apply_plan(registry, routing, read_plan_for(registry, champion), settings, why)


def sync_forever(
    connect: Callable[[], Registry], settings: Settings, seconds: float, log: Callable[[str], object]
) -> Never:
    """Sync every `seconds` seconds, forever; a failure is logged once and retried.

    Args:
        connect: opens the registry; called until it succeeds.
        log: called with a line whenever the state changes.
    """
    registry, logged = None, ""
    while True:
        try:
            registry = registry or connect()
            found = f"the serving folder holds {describe_routing(sync(registry, settings, why='synced'))}"
        except Exception as error:
            # An unavailable or inconsistent registry must not stop the current champion from serving.
            found = f"the serving folder is unchanged: {describe_error(error, settings)}"
        if found != logged:
            log(found)
        logged = found
        time.sleep(seconds)


def recover(registry: Registry, settings: Settings) -> str:
    """Register the served champion again if the registry was lost, and make it champion.

    The next model is then compared with this champion instead of being the first in an empty registry.

    Returns:
        A sentence about what was done; empty if there was nothing to do.

    Raises:
        ProjectError: the served champion cannot be registered.
    """
    folder = settings.serving_folder
    if registry.find_alias(CHAMPION) or not (folder / serving_folder.ROUTING).is_file():
        return ""
    with lock_rollout(folder):
        try:
            routing = serving_folder.read_routing(folder)
            if routing.champion is None or routing.name != registry.name:
                return ""
            version = _register_again(registry, folder, routing.champion, routing.previous)
        except ProjectError as error:
            raise ProjectError(
                f"the registry has no champion, and the served one cannot be registered again: {error}; "
                f"restore the registry from a backup, or move '{folder}' away to start without a champion"
            ) from None
        registry.promote(version.number, None, override="it served when the registry was lost")
    return (
        f"the registry was lost: version {routing.champion.version} still serves, and is registered as {version.number}"
    )


def _register_again(registry: Registry, folder: Path, champion: BundleRef, previous: BundleRef | None) -> Version:
    """Register the champion, and the previous champion for rollback, in a registry that has lost them."""
    for ref in (previous, champion):
        if ref is None or (found := registry.find(ref.digest)):
            continue
        path = serving_folder.bundle_folder(folder, ref)
        try:
            bundle.verify(path, ref.digest)
        except IntegrityError:
            if ref == champion:
                raise
            continue
        lineage_path = path / bundle.LINEAGE
        lineage = {
            **(read_json(lineage_path) if lineage_path.is_file() else {}),
            "restored_from": f"serving folder, version {ref.version}",
        }
        served = GateResult("restored", passed=True, reason=f"version {ref.version} served when the registry was lost")
        found = registry.register(path, [served], {}, lineage, [])
    assert found is not None
    return found
