"""The stage graph, as DVC has it: what is out of date, and how to bring it up to date. The only dvc import."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import Busy, DataError, ProjectError
from ..files import sha256_file
from ..settings import QUIET

LOCK = Path("dvc.lock")
_RWLOCK = Path(".dvc/tmp/rwlock")


def stages() -> dict[str, str]:
    """Stage name → what it does, in the order of dvc.yaml."""
    content = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    return {name: stage.get("desc", "") for name, stage in content["stages"].items()}


def outdated() -> bool:
    """Whether anything that DVC watches has changed since the last run."""
    with _repo() as repo:
        return bool(repo.status())


def raw_is_tracked(raw: Path) -> bool:
    """Whether DVC has a record of the raw table."""
    return _pointer(raw).is_file()


def restore(raw: Path) -> bool:
    """Bring the raw table back from the cache or the remote; False where neither has it."""
    with _repo() as repo:
        for bring in (repo.checkout, repo.pull):
            with contextlib.suppress(Exception):
                bring(targets=[str(_pointer(raw))])
            if raw.is_file():
                return True
    return False


def track(raw: Path) -> bool:
    """Record the raw table as it now is; says whether it differs from what was recorded."""
    with _repo() as repo:
        if raw_is_tracked(raw) and not repo.status(targets=[str(_pointer(raw))]):
            return False
        repo.add(targets=[str(raw)])
    return True


def reproduce(stage: str) -> bool:
    """Bring one stage up to date; says whether it had to run.

    Raises:
        ProjectError: the stage failed; it has printed why.
    """
    with _repo() as repo:
        return bool(repo.reproduce(targets=[stage], single_item=True))


def lock_hash() -> str:
    """sha256 of dvc.lock: names the state of every input and output."""
    return sha256_file(LOCK) if LOCK.is_file() else ""


@contextlib.contextmanager
def _repo() -> Iterator[Any]:
    os.environ.update(QUIET)
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError

    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    _drop_broken_lock()
    try:
        with Repo() as repo:
            yield repo
    except ReproductionError as error:
        raise ProjectError(
            f"stage {error} failed; its message stands above".replace("failed to reproduce ", "")
        ) from None
    except (LockError, RWLockFileCorruptedError, RWLockFileFormatError) as error:
        raise Busy(
            f"DVC is at work in this project already ({str(error).splitlines()[0]}); wait for it to end"
        ) from None
    except DvcException as error:
        raise DataError(f"DVC: {' '.join(str(error).split())}") from None


def _drop_broken_lock() -> None:
    """A process killed while it wrote this file would stop DVC for ever."""
    try:
        json.loads(_RWLOCK.read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        pass
    except ValueError:
        _RWLOCK.unlink()


def _pointer(raw: Path) -> Path:
    return raw.with_name(raw.name + ".dvc")
