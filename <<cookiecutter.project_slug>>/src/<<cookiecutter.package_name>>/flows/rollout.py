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
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _changing(folder: Path) -> AbstractContextManager[None]:
    """One process at a time changes the serving folder; the next one waits for it."""
    return exclusive(folder, "rollout", wait_seconds=WAIT_SECONDS)


def _serve(registry: Registry, version: Version, folder: Path, why: str) -> Routing:
    sweep(folder, folder / routing.BUNDLES)
    ref = Ref(version=version.number, digest=version.digest)
    task("fetch bundle", _fetch, registry, version, routing.bundle_folder(folder, ref))
    before = _read(folder)
    if before and before.champion == ref:
        return before
    after = Routing(
        name=registry.name,
        champion=ref,
        previous=before.champion if before else None,
        updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=why,
    )
    # Bundle first, then the pointer to it, then the record: a crash in between leaves a folder that serves.
    routing.write(folder, after)
    _record(folder, before, after, why)
    _prune(folder, after)
    return after


def _challenger(registry: Registry) -> str:
    challenger = registry.alias("challenger")
    if challenger is None:
        raise ProjectError("there is no challenger to promote; name a version, or train one that passes its gates")
    return challenger.number


def _fetch(registry: Registry, version: Version, path: Path) -> None:
    if _is_whole(path, version.digest):
        return
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


def _record(folder: Path, before: Routing | None, after: Routing, why: str) -> None:
    def number(found: Routing | None) -> str | None:
        return found.champion.version if found and found.champion else None

    entry = {"at": after.updated_at, "who": user(), "from": number(before), "to": number(after), "why": why}
    with (folder / AUDIT).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _prune(folder: Path, now: Routing) -> None:
    used = {ref.version for ref in (now.champion, now.previous, now.challenger) if ref}
    unused = [path for path in (folder / routing.BUNDLES).iterdir() if path.name not in used]
    newest_first = sorted(unused, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[max(0, KEPT - len(used)) :]:
        shutil.rmtree(path, ignore_errors=True)
