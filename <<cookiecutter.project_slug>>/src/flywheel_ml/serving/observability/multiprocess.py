"""Metrics of several workers: files that outlive a worker, and their aggregation.

A worker counts in memory-mapped files, in prometheus_client's multiprocess mode, so its counts survive `kill -9`. The
files are named by the worker's number, not its process id. A restarted worker therefore continues the counts of its
predecessor, counters never decrease, and the number of files does not grow.
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
"""Files in this folder are in memory, so writes never wait for a disk."""
PREFIX = f"{__name__.partition('.')[0]}-metrics-{os.getuid()}-"
LOCK = "lock"
ROOM = 16 * 2**20
"""Minimum free bytes there; a worker needs some hundred KB."""
YOUNG_SECONDS = 60.0
"""Folders younger than this are not removed, because a folder is created before it is locked."""
WORKER = "worker_info"
"""The series whose label `process` has the process ids of live workers."""


@contextmanager
def create_folder() -> Iterator[Path]:
    """Create a folder for the metrics of a server's workers, and remove the folders of killed servers.

    Raises:
        ConfigError: no folder for temporary files is writable.
    """
    place = _find_place()
    _sweep(place)
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    try:
        with filelock.FileLock(made / LOCK):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def register_worker(counts: Path, worker: int) -> None:
    """Register this process as a worker; must be called before any metric is created."""
    use_own_memory()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
    values.ValueClass = values.MultiProcessValue(lambda: worker)


def use_own_memory() -> None:
    """Keep this process's metrics in memory, whatever its environment; must be called before any metric is created."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)
    values.ValueClass = values.MutexValue


def remove_worker(counts: Path, worker: int) -> None:
    """Remove the gauges of a dead worker; its counters stay."""
    mark_process_dead(worker, str(counts))


def aggregate(counts: Path) -> list[Metric]:
    """Aggregate the metrics of all workers, and add process metrics of each live worker."""
    families: list[Metric] = list(MultiProcessCollector.merge(list(_list_files(counts))))
    alive = [sample.labels["process"] for one in families if one.name == WORKER for sample in one.samples]
    return [*families, *_collect_processes(alive)]


def _list_files(counts: Path) -> Iterator[str]:
    """Return the files that are not empty; a worker that is starting, or was killed then, has empty ones."""
    for file in counts.glob("*.db"):
        with suppress(FileNotFoundError):  # Another process may be removing the files of a dead worker.
            if file.stat().st_size:
                yield str(file)


def _collect_processes(pids: Iterable[str]) -> Iterable[Metric]:
    found: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            kept = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            kept.samples += [one._replace(labels={**one.labels, "process": pid}) for one in family.samples]
    return found.values()


def _find_place() -> Path:
    # If there is no space for a mapped file, the system kills the process that writes to it.
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        return MEMORY
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise ConfigError(
            "no folder for temporary files is writable, but several workers need one for their metrics; "
            "set TMPDIR to a writable folder, or serve with one worker"
        ) from None


def _sweep(place: Path) -> None:
    for left in place.glob(f"{PREFIX}*"):
        with suppress(OSError, filelock.Timeout):
            if left.stat().st_mtime < time.time() - YOUNG_SECONDS:
                with filelock.FileLock(left / LOCK, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
