"""From the registry to the serving folder: which version answers, who decided it, and the way back."""

import json
import os
import shutil
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import bundle
from ..errors import IntegrityError, ProjectError
from ..files import replacing_folder, sweep
from ..model.registry import CHAMPION, Registry, Version
from ..process import user
from ..serving import routing
from ..serving.routing import Ref, Routing
from ..settings import Settings
from .engine import exclusive, task

AUDIT = "audit.jsonl"
KEPT = 5
"""Bundles of this many versions stay in the serving folder."""
WAIT_SECONDS = 60


def promote(registry: Registry, settings: Settings, number: str | None, override: str = "") -> Version:
    """Make a version (the challenger, if none is named) champion, and serve it.

    Raises:
        ProjectError: there is no such version, a gate refused it, or somebody else promoted in the meantime.
    """
    chosen, champion = number or _challenger(registry), registry.alias(CHAMPION)
    expected = champion.number if champion else None
    with _changing(settings.serving_folder):
        # The bundle before the alias: what cannot be had is no champion.
        _fetch(registry, registry.promotable(chosen, override), settings.serving_folder)
        version = registry.promote(chosen, expected, override)
        _serve(registry, version, settings.serving_folder, why=override or "promoted")
    return version


def rollback(registry: Registry, settings: Settings) -> Version:
    """Serve the version that was champion before, and make it champion again.

    Raises:
        ProjectError: the serving folder knows no version before this one.
    """
    with _changing(settings.serving_folder):
        now = routing.read(settings.serving_folder)
        if now.previous is None or now.champion is None:
            raise ProjectError("there is no version to roll back to; `rollout status` shows what there is")
        _fetch(registry, registry.get(now.previous.version), settings.serving_folder)
        version = registry.promote(now.previous.version, now.champion.version, override="rolled back")
        _serve(registry, version, settings.serving_folder, why="rolled back")
    return version


def sync(registry: Registry, settings: Settings, why: str) -> Routing:
    """Make the serving folder hold what the registry calls champion; safe to repeat, and after a crash.

    Raises:
        ProjectError: the registry has no champion.
        IntegrityError: what the registry delivered is not what was registered.
    """
    with _changing(settings.serving_folder):
        champion = registry.alias(CHAMPION)
        if champion is None:
            raise ProjectError("the registry has no champion; train a model that passes its gates")
        return _serve(registry, champion, settings.serving_folder, why)


def audit(folder: Path) -> list[dict[str, Any]]:
    """Every change of the serving folder, oldest first: when, who, from, to, why."""
    path = folder / AUDIT
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    # What a crash cut off is no record.
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _changing(folder: Path) -> AbstractContextManager[None]:
    """One process at a time changes the serving folder; the next one waits for it."""
    return exclusive(folder, "rollout", wait_seconds=WAIT_SECONDS)


def _fetch(registry: Registry, version: Version, folder: Path) -> Ref:
    sweep(folder, folder / routing.BUNDLES)
    ref = Ref(version=version.number, digest=version.digest)
    path = routing.bundle_folder(folder, ref)
    if not _is_whole(path, version.digest):
        task("fetch bundle", _download, registry, version, path)
    return ref


def _serve(registry: Registry, version: Version, folder: Path, why: str) -> Routing:
    ref = _fetch(registry, version, folder)
    before = _read(folder)
    if before and before.champion == ref:
        _record(folder, before)
        return before
    after = Routing(
        name=registry.name,
        champion=ref,
        previous=before.champion if before else None,
        updated_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        reason=why,
    )
    # Bundle first, then the pointer to it, then the record: a crash in between leaves a folder that serves.
    routing.write(folder, after)
    _record(folder, after)
    _prune(folder, after)
    return after


def _challenger(registry: Registry) -> str:
    challenger = registry.alias("challenger")
    if challenger is None:
        raise ProjectError("there is no challenger to promote; name a version, or train one that passes its gates")
    return challenger.number


def _download(registry: Registry, version: Version, path: Path) -> None:
    with replacing_folder(path) as part:
        registry.download(version, part)
        bundle.verify(part, version.digest)


def _is_whole(path: Path, digest: str) -> bool:
    try:
        bundle.verify(path, digest)
    except IntegrityError:
        return False
    return True


def _read(folder: Path) -> Routing | None:
    """What is there; nothing where it cannot be read, for then it is to be written anew."""
    try:
        return routing.read(folder)
    except ProjectError:
        return None


def _record(folder: Path, now: Routing) -> None:
    """Add the change that led to `now`, unless it is on record."""
    entries = audit(folder)
    if entries and entries[-1]["at"] == now.updated_at:
        return
    entry = {
        "at": now.updated_at,
        "who": user(),
        "from": now.previous.version if now.previous else None,
        "to": now.champion.version if now.champion else None,
        "why": now.reason,
    }
    path = folder / AUDIT
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * torn + json.dumps(entry, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _prune(folder: Path, now: Routing) -> None:
    used = {ref.version for ref in (now.champion, now.previous, now.challenger) if ref}
    unused = [path for path in (folder / routing.BUNDLES).iterdir() if path.name not in used]
    newest_first = sorted(unused, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[max(0, KEPT - len(used)) :]:
        shutil.rmtree(path, ignore_errors=True)
