"""Chooses the version of a change, and checks that it may serve."""

from pathlib import Path

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.serving_folder import BundleRef
from flywheel_ml.flows.rollout.audit import read_audit
from flywheel_ml.flows.rollout.plan import ExperimentPlan, read_plan_for
from flywheel_ml.flows.rollout.serving import fetch, find_routing
from flywheel_ml.model.registration.registry import CHALLENGER, CHAMPION, Registry, Version
from flywheel_ml.utils.errors import GateRefusal, ProjectError
from flywheel_ml.utils.formatting import short_digest


def get_champion(registry: Registry) -> Version:
    """Return the champion, or raise."""
    champion = registry.find_alias(CHAMPION)
    if champion is None:
        raise ProjectError("the registry has no champion; train a model that passes its gates")
    return champion


def get_challenger(registry: Registry) -> str:
    """Return the number of the challenger, or raise."""
    challenger = registry.find_alias(CHALLENGER)
    if challenger is None:
        champion, versions = registry.find_alias(CHAMPION), registry.list_versions()
        known = [f"version {champion.number} is champion"] if champion else []
        known += [f"version {one.number} was rolled back by {one.rolled_back}" for one in versions if one.rolled_back]
        details = f": {', '.join(known)}" if known else ""
        raise ProjectError(f"there is no challenger{details}; name a version, or train one that passes its gates")
    return challenger.number


def choose_candidate(registry: Registry, champion: Version | None, folder: Path) -> str:
    """Choose the version to promote if none was given."""
    if champion and (running := read_plan_for(registry, champion)):
        if len(running.arms) > 1:
            raise ProjectError(
                f"an experiment with versions {running.versions} is running; name the one to promote, such as "
                f"`rollout promote {running.arms[0].version}` (make: VERSION={running.arms[0].version})"
            )
        return running.arms[0].version
    if champion and registry.find_alias(CHALLENGER) is None:
        routing, entries = find_routing(folder), read_audit(folder)
        serves_champion = routing and routing.champion and routing.champion.digest == champion.digest
        if not serves_champion or (routing and entries and entries[-1]["at"] != routing.updated_at):
            return champion.number  # Complete a promotion that a crash interrupted.
    return get_challenger(registry)


def choose_version(registry: Registry, running: ExperimentPlan | None) -> str:
    """Choose the version of an experiment with one version if none was given."""
    return running.arms[0].version if running and len(running.arms) == 1 else get_challenger(registry)


def check_candidate(registry: Registry, folder: Path, champion: Version, number: str) -> None:
    """Raise if the version cannot take part in an experiment, before anything changes."""
    version = registry.get(number)
    if version.number == champion.number:
        raise ProjectError(f"version {number} is already champion; give another version, or train one")
    if not version.passed:
        raise GateRefusal(f"version {number} was refused ({version.refusal}); it cannot be used in an experiment")
    paths = [serving_folder.bundle_folder(folder, fetch(registry, one, folder)) for one in (champion, version)]
    if incompatibility := serving_folder.find_incompatibility(
        *(Contract.load(path / bundle.CONTRACT, accept_renamed=True) for path in paths)
    ):
        raise ProjectError(f"version {number} cannot run alongside version {champion.number}: {incompatibility}")


def find_registered(registry: Registry, ref: BundleRef) -> Version:
    """Find the version of a bundle in the serving folder, even if its number has changed."""
    if found := registry.find(ref.digest):
        return found
    raise ProjectError(
        f"the registry has no version {ref.version}, which the serving folder holds "
        f"(sha256 {short_digest(ref.digest)}…); promote another version"
    )
