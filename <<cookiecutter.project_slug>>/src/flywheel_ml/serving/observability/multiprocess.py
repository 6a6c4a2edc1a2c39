"""The counts of a server's workers: where they outlive a worker, and how they are added up.

A worker counts in files that it has mapped into memory, in prometheus_client's multiprocess mode: what stands there
survives a `kill -9`. The files bear the worker's number, not its process id, so the process that is started in its
place counts on where it stopped, no count ever goes back, and there are never more files than workers need.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
from prometheus_client import Metric, ProcessCollector, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from flywheel_ml.utils.errors import ConfigError

MEMORY = Path("/dev/shm")  # noqa: S108 - the folders made in it are nobody else's
"""Files there never wait for a disk."""
PREFIX = f"{__name__.partition('.')[0]}-metrics-{os.getuid()}-"
LOCK = "lock"
ROOM = 16 * 2**20
"""Bytes that have to be free there; a worker needs some hundred KB."""
YOUNG_SECONDS = 60.0
"""A folder is made before it is locked: so long it is not taken for one that was left behind."""
WORKER = "worker_info"
"""The series whose label `process` tells the process ids of those that live."""


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for the counts of one server's workers; clears away what servers that were killed have left.

    Raises:
        ConfigError: there is no place for it.
    """
    place = _place()
    _sweep(place)
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    try:
        with filelock.FileLock(made / LOCK):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def join(counts: Path, worker: int) -> None:
    """Let this process count as this worker; to be called before any metric is made."""
    leave()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
    values.ValueClass = values.MultiProcessValue(lambda: worker)


def leave() -> None:
    """Let this process count for itself, in memory, whatever environment it inherited; also before any metric."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)
    values.ValueClass = values.MutexValue


def forget(counts: Path, worker: int) -> None:
    """Drop the gauges of a worker that died; its counters stay."""
    mark_process_dead(worker, str(counts))


def total(counts: Path) -> list[Metric]:
    """The sums over all workers, dead ones included where that is meant, and the process of each that lives."""
    families: list[Metric] = list(MultiProcessCollector.merge(list(_files(counts))))
    alive = [sample.labels["process"] for one in families if one.name == WORKER for sample in one.samples]
    return [*families, *_processes(alive)]


def _files(counts: Path) -> Iterator[str]:
    """The files that have begun: a worker that is starting, or was killed as it did, has some with nothing in them."""
    for file in counts.glob("*.db"):
        with suppress(FileNotFoundError):  # Those of a worker that died are being forgotten.
            if file.stat().st_size:
                yield str(file)


def _processes(pids: Iterable[str]) -> Iterable[Metric]:
    found: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            kept = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            kept.samples += [one._replace(labels={**one.labels, "process": pid}) for one in family.samples]
    return found.values()


def _place() -> Path:
    # Where a mapped file finds no room, the system ends the process that writes to it.
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        return MEMORY
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise ConfigError(
            "no folder for temporary files can be written to, which several workers need for their metrics; "
            "set TMPDIR to one, or serve with one worker"
        ) from None


def _sweep(place: Path) -> None:
    for left in place.glob(f"{PREFIX}*"):
        with suppress(OSError, filelock.Timeout):
            if left.stat().st_mtime < time.time() - YOUNG_SECONDS:
                with filelock.FileLock(left / LOCK, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
