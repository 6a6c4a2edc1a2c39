"""The stage graph, as DVC has it: what is out of date, and how to bring it up to date. The only dvc import."""

import contextlib
import json
import logging
import os
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


def read_stages() -> dict[str, str]:
    """Stage name → what it does, in the order of dvc.yaml.

    Raises:
        ConfigError: the file is missing or is not what DVC reads.
    """
    try:
        content = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))
        return {name: stage.get("desc", "") for name, stage in content["stages"].items()}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{GRAPH} has no readable stages: {' '.join(str(error).split())}; restore it") from None


def is_outdated() -> bool:
    """Whether anything that DVC watches has changed since the last run."""
    with _open_repo() as repo:
        return bool(repo.status())


def is_tracked(raw: Path) -> bool:
    """Whether DVC has a record of the raw table."""
    return _get_pointer(raw).is_file()


def restore(raw: Path) -> bool:
    """Bring the raw table back from the cache or the remote; False where neither has it."""
    with _open_repo() as repo:
        for bring in (repo.checkout, repo.pull):
            # Cloud libraries fail in ways of their own; whatever the reason, there is no copy to be had.
            with contextlib.suppress(Exception):
                bring(targets=[str(_get_pointer(raw))])
            if raw.is_file():
                return True
    return False


def track(raw: Path) -> bool:
    """Record the raw table as it now is; says whether it differs from what was recorded."""
    before = _get_pointer(raw).read_text(encoding="utf-8") if is_tracked(raw) else ""
    with _open_repo() as repo:
        if before and not repo.status(targets=[str(_get_pointer(raw))]):
            return False
        repo.add(targets=[str(raw)])
    return _get_pointer(raw).read_text(encoding="utf-8") != before


def reproduce(stage: str) -> bool:
    """Bring one stage up to date; says whether it had to run.

    Raises:
        ProjectError: the stage failed; it has printed why.
    """
    with _open_repo() as repo:
        # With what it stands on, which is a matter of milliseconds where that is up to date already.
        return any(done.addressing == stage for done in repo.reproduce(targets=[stage]))


def hash_lock() -> str:
    """sha256 of dvc.lock: names the state of every input and output."""
    return sha256_file(LOCK) if LOCK.is_file() else ""


@contextlib.contextmanager
def _open_repo() -> Iterator[Any]:
    os.environ.update(QUIET)
    # Stages are run as `python -m …`: by this Python, whichever comes first on the path otherwise.
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
        with Repo() as repo:
            yield repo
    except ReproductionError as error:
        name = str(error).removeprefix("failed to reproduce ")
        raise ProjectError(f"stage {name} failed; its message stands above") from None
    except LockError as error:
        raise Busy(f"DVC is at work in this project ({str(error).splitlines()[0]}); wait for it to end") from None
    except DvcException as error:
        raise DataError(f"DVC: {' '.join(str(error).split())}") from None


def _drop_broken_lock() -> None:
    """A process killed while it wrote this file would stop DVC for ever."""
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
