"""The DVC stages: which are out of date, and how to run them. The only module that imports dvc."""

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flywheel_ml.core.settings import QUIET
from flywheel_ml.utils.errors import Busy, ConfigError, DataError, ProjectError
from flywheel_ml.utils.files import sha256_file

GRAPH, LOCK = Path("dvc.yaml"), Path("dvc.lock")
_RWLOCK = Path(".dvc/tmp/rwlock")
_LOCAL_CONFIG = Path(".dvc/config.local")


def read_stages() -> dict[str, str]:
    """Read the stages of dvc.yaml in order: name → description.

    Raises:
        ConfigError: the file is missing or invalid.
    """
    try:
        content = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))
        return {name: stage.get("desc", "") for name, stage in content["stages"].items()}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{GRAPH} has no readable stages: {' '.join(str(error).split())}; restore it") from None


def is_outdated() -> bool:
    """Whether anything that DVC tracks has changed since the last run."""
    with _open_repo() as repo:
        return bool(repo.status())


def list_outdated() -> dict[str, str]:
    """List the stages that would run again, and tracked files that changed: name → the first reason.

    A stage after one of them would run again too, although its own inputs have not changed yet; not after one whose
    outputs alone were changed, because it makes the same ones again.
    """
    with _open_repo() as repo:
        status = repo.status()
        found = {name: _describe_change(changes) for name, changes in status.items()}
        rerun = {name for name, changes in status.items() if any(set(one) != {"changed outs"} for one in changes)}
        graph = repo.index.graph  # From each stage to those that it depends on.
        waiting = [stage for stage in graph if stage.addressing in rerun]
        while waiting:
            stage = waiting.pop()
            for later in graph.predecessors(stage):
                if later.addressing not in found:
                    found[later.addressing] = f"{stage.addressing} would run again"
                    waiting.append(later)
    return found


def _describe_change(changes: Any) -> str:
    """Describe the first change of `Repo.status`, such as `modified reports/metrics.json`."""
    for change in changes if isinstance(changes, list) else []:
        for what, items in change.items() if isinstance(change, dict) else []:
            for path, state in items.items() if isinstance(items, dict) else []:
                return f"{what.removeprefix('changed ')}: {path} {state}"
    return "it would run again"


def is_tracked(raw: Path) -> bool:
    """Whether DVC tracks the raw table."""
    return _get_pointer(raw).is_file()


def restore(raw: Path) -> bool:
    """Restore the raw table from the cache or the remote; return False if neither has it."""
    with _open_repo() as repo:
        for bring in (repo.checkout, repo.pull):
            # Cloud libraries raise their own errors; any of them means that no copy is available.
            with contextlib.suppress(Exception):
                bring(targets=[str(_get_pointer(raw))])
            if raw.is_file():
                return True
    return False


def track(raw: Path) -> bool:
    """Track the current raw table with DVC; return whether it differs from the recorded version."""
    before = _get_pointer(raw).read_text(encoding="utf-8") if is_tracked(raw) else ""
    with _open_repo() as repo:
        if before and not repo.status(targets=[str(_get_pointer(raw))]):
            return False
        repo.add(targets=[str(raw)])
    return _get_pointer(raw).read_text(encoding="utf-8") != before


def reproduce(stage: str) -> bool:
    """Bring one stage up to date; return whether it had to run.

    Raises:
        ProjectError: the stage failed; it has printed the reason.
    """
    with _open_repo() as repo:
        # Includes the stages it depends on, which takes milliseconds if they are up to date.
        return any(done.addressing == stage for done in repo.reproduce(targets=[stage]))


def hash_lock() -> str:
    """Return the sha256 of dvc.lock, which identifies the state of every input and output."""
    return sha256_file(LOCK) if LOCK.is_file() else ""


def share_cache(folder: Path) -> None:
    """Let the copy of this project in `folder` use the cache and the remotes of this one, by its .dvc/config.local."""
    with _open_repo() as repo:
        cache, remotes = repo.cache.local_cache_dir, repo.config["remote"]
    if _LOCAL_CONFIG.is_file():
        shutil.copyfile(_LOCAL_CONFIG, folder / _LOCAL_CONFIG)
    with _open_repo(folder) as copy, copy.config.edit("local") as content:
        content.setdefault("cache", {})["dir"] = cache
        for name, remote in remotes.items():
            # DVC has resolved paths that were relative to the file they are in.
            content.setdefault("remote", {}).setdefault(name, {})["url"] = remote["url"]


@contextlib.contextmanager
def _open_repo(folder: Path = Path()) -> Iterator[Any]:
    os.environ.update(QUIET)
    # Stages run as `python -m …`, so put the current Python first on the path.
    here, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != here:
        os.environ["PATH"] = here + os.pathsep + path
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.lock import LockError
    from dvc.repo import Repo

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        _drop_broken_lock()
        with Repo(str(folder)) as repo:
            yield repo
    except ReproductionError as error:
        name = str(error).removeprefix("failed to reproduce ")
        raise ProjectError(f"stage {name} failed; its message is above") from None
    except LockError as error:
        raise Busy(f"DVC is running in this project ({str(error).splitlines()[0]}); wait for it to end") from None
    except DvcException as error:
        raise DataError(f"DVC: {' '.join(str(error).split())}") from None


def _drop_broken_lock() -> None:
    """Delete the lock file if a killed process left it incomplete; otherwise DVC would never run again."""
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_LOCK, SCHEMA
    from voluptuous import Invalid

    if not _RWLOCK.is_file():
        return
    folder = _RWLOCK.parent
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):
        try:
            SCHEMA(json.loads(_RWLOCK.read_text(encoding="utf-8")))
        except (ValueError, Invalid):
            _RWLOCK.unlink()


def _get_pointer(raw: Path) -> Path:
    return raw.with_name(raw.name + ".dvc")
