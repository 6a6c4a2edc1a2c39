"""Brings a serving folder in line with the registry: bundle, routing file, audit log, in this order."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.serving_folder import BundleRef, Challenger, Change, Routing, Shadow
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.orchestration.engine import lock_project, task
from flywheel_ml.flows.rollout import audit
from flywheel_ml.flows.rollout.audit import CHAMPION_CHANGES, RENUMBERED
from flywheel_ml.flows.rollout.plan import ExperimentPlan, format_share
from flywheel_ml.model.registration.registry import CHALLENGER, CHAMPION, Registry, Version
from flywheel_ml.prediction_log import Reader
from flywheel_ml.utils.errors import IntegrityError, ProjectError
from flywheel_ml.utils.files import remove_folder, remove_leftovers, replacing_folder, sha256_file
from flywheel_ml.utils.formatting import short_digest
from flywheel_ml.utils.process import get_user_name

Item = TypeVar("Item")

LOCK_TIMEOUT_SECONDS = 60


def lock_rollout(folder: Path) -> AbstractContextManager[None]:
    """Lock the serving folder: one process changes it at a time, others wait."""
    return lock_project(folder, "rollout", wait_seconds=LOCK_TIMEOUT_SECONDS)


def serve_champion(
    registry: Registry, version: Version, settings: Settings, why: str, what: str = CHAMPION_CHANGES[0]
) -> Routing:
    """Route all traffic to a version; if it is a new champion, a running experiment ends."""
    folder = settings.serving_folder
    ref = fetch(registry, version, folder)
    before = find_routing(folder)
    if before and before.champion == ref:
        audit.append_entry(folder, before)
        return before
    previous = before.champion if before else None
    if before and previous and previous.digest == ref.digest:
        # The same model under another number: a rollback still returns to the same previous champion.
        what, previous = RENUMBERED, before.previous
    after = Routing(
        name=registry.name,
        champion=ref,
        previous=previous,
        updated_at=format_now(),
        reason=why,
        change=Change(
            who=get_user_name(), what=what, before=_get_number(before.champion if before else None), after=ref.version
        ),
    )
    return _write_routing(registry, settings, after)


def apply_plan(
    registry: Registry, routing: Routing, plan: ExperimentPlan | None, settings: Settings, why: str
) -> Routing:
    """Route traffic to the versions of the plan alongside the champion; without a plan, to the champion alone."""
    challengers, shadow = [], None
    for arm in plan.arms if plan else ():
        assert plan is not None
        ref = fetch(registry, registry.get(arm.version), settings.serving_folder)
        if arm.share is None:
            shadow = Shadow(ref=ref, salt=plan.salt, since=plan.since)
        else:
            challengers.append(Challenger(ref=ref, share=arm.share, salt=plan.salt, since=plan.since))
    if (routing.challengers, routing.shadow) == (tuple(challengers), shadow):
        audit.append_entry(settings.serving_folder, routing)
        return routing
    change = Change(
        who=plan.who if plan else get_user_name(),
        what=plan.kind if plan else "experiment",
        before=", ".join(one.ref.version for one in routing.experiments) or None,
        after=plan.versions if plan else None,
    )
    facts = {"challengers": tuple(challengers), "shadow": shadow, "updated_at": format_now(), "change": change}
    return _write_routing(registry, settings, routing.model_copy(update={**facts, "reason": plan.why if plan else why}))


def describe_routing(routing: Routing) -> str:
    """Describe the versions that answer, in one line."""
    parts = [f"version {one.ref.version} for {format_share(one.share)} of the keys" for one in routing.challengers]
    if routing.shadow:
        parts.append(f"version {routing.shadow.ref.version} as shadow")
    return ", ".join([f"version {routing.champion.version if routing.champion else 'none'}", *parts])


def fetch(registry: Registry, version: Version, folder: Path) -> BundleRef:
    """Download the bundle of a version into the folder unless it is there, intact."""
    remove_leftovers(folder, folder / serving_folder.BUNDLES)
    ref = BundleRef(version=version.number, digest=version.digest)
    path = serving_folder.bundle_folder(folder, ref)
    if not _is_intact(path, version.digest):
        task("fetch bundle", _download, registry, version, path)
    return ref


def find_routing(folder: Path) -> Routing | None:
    """Read the routing; None if it cannot be read, because it is then written again."""
    try:
        return serving_folder.read_routing(folder)
    except ProjectError:
        return None


def prune(registry: Registry, settings: Settings) -> None:
    """Remove the bundles of old versions, as every change of the serving folder also does."""
    with lock_rollout(settings.serving_folder):
        if (routing := find_routing(settings.serving_folder)) is not None:
            prune_bundles(registry, settings, routing)


def prune_bundles(registry: Registry, settings: Settings, routing: Routing) -> None:
    """Remove the bundles of old versions from the folder and a local artifact store; `keep_versions` stay in each.

    Bundles in use stay, and so do those that the prediction log refers to. If the log cannot be read, all stay.
    """
    tried = [one.ref for one in routing.experiments]
    used = {ref.digest for ref in (routing.champion, routing.previous, *tried) if ref}
    used |= {found.digest for alias in (CHAMPION, CHALLENGER) if (found := registry.find_alias(alias))}
    log = Reader(settings.prediction_log)
    folders: dict[Path, tuple[str, str]] = {}
    for path in settings.serving_folder.joinpath(serving_folder.BUNDLES).glob("[!.]*"):
        manifest = path / bundle.MANIFEST
        digest = sha256_file(manifest) if manifest.is_file() else ""
        folders[path] = path.name.removesuffix(f"-{short_digest(digest)}"), digest
    newest = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in _find_removable(newest, folders.__getitem__, used, settings.keep_versions, log):
        remove_folder(path)
    versions = registry.list_versions()
    for version in _find_removable(versions, lambda one: (one.number, one.digest), used, settings.keep_versions, log):
        registry.prune(version)


def format_now() -> str:
    """Return the current time in ISO 8601, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _get_number(ref: BundleRef | None) -> str | None:
    return ref.version if ref else None


def _write_routing(registry: Registry, settings: Settings, after: Routing) -> Routing:
    # Bundle first, then the routing file, then the audit log: after a crash in between, the folder still serves.
    serving_folder.write_routing(settings.serving_folder, after)
    audit.append_entry(settings.serving_folder, after)
    prune_bundles(registry, settings, after)
    return after


def _download(registry: Registry, version: Version, path: Path) -> None:
    with replacing_folder(path) as part:
        registry.download(version, part)
        bundle.verify(part, version.digest)


def _is_intact(path: Path, digest: str) -> bool:
    try:
        bundle.verify(path, digest)
    except IntegrityError:
        return False
    return True


def _find_removable(
    newest: Sequence[Item],
    model: Callable[[Item], tuple[str, str]],
    used: Collection[str],
    keep_versions: int,
    log: Reader,
) -> list[Item]:
    """Find the items that may be removed; `model` returns the version and the digest of each."""
    free = [one for one in newest if model(one)[1] not in used]
    old = free[max(0, keep_versions - (len(newest) - len(free))) :]
    try:
        return [one for one in old if not log.refers_to(*model(one))]
    except ProjectError:
        return []
