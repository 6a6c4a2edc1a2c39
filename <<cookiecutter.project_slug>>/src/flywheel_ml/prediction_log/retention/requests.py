"""Asks the owners of a log's files to change them, through files in `<log>/.requests`.

    <request>.json            an `Operation`
    <request>.<file>.json     the result for one file of the log, or a sign of life while it is in progress
    erase-<id>.json           the journal of an erasure (erase.py)

A file that no living process owns is claimed and changed directly. So a request reaches every file of a log, whether
servers run or not, and whoever is killed.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from flywheel_ml.prediction_log.retention.operations import Operation, merge, run
from flywheel_ml.prediction_log.rows import new_id
from flywheel_ml.prediction_log.stores import SQLiteStore
from flywheel_ml.utils.errors import Busy, ProjectError
from flywheel_ml.utils.files import remove_leftovers, replacing

FOLDER = ".requests"
ANSWER_SECONDS = 30.0
"""How long an owner may give no sign of life."""
WAIT_SECONDS = 0.1
UNUSED_SHARE = 0.25
"""Share of unused pages above which a file of an older version is rebuilt, if no process owns it."""
_REQUEST = "request-"


class Outcome(NamedTuple):
    """What a change did: table → deleted rows, and file → why it could not be changed."""

    counts: dict[str, int]
    failures: dict[str, str]


@contextmanager
def hold_job_lock(folder: Path) -> Iterator[Path]:
    """Hold the lock that lets one job at a time change a log; yields the folder of requests.

    Requests that a killed job left are removed: its rerun makes them again.

    Raises:
        Busy: another job is running.
    """
    place = folder / FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProjectError(f"prediction log '{folder}' cannot be written: {error.strerror}") from None
    lock = filelock.FileLock(place / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Busy(f"another prune, export or erase is running on '{folder}'; wait until it ends") from None
    try:
        remove_leftovers(place)
        for path in place.glob(f"{_REQUEST}*.json"):
            path.unlink(missing_ok=True)
        yield place
    finally:
        lock.release()


def change_all(folder: Path, operation: Operation) -> Outcome:
    """Carry out an operation on all files of a log: in their owners, or here if nobody owns them."""
    place, name = folder / FOLDER, _REQUEST + new_id()
    place.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    waiting = {path: time.monotonic() for path in sorted(folder.glob("*.db"))}
    _write(place / f"{name}.json", operation.model_dump(mode="json"))
    try:
        while waiting:
            for path, since in list(waiting.items()):
                result = _read(place / f"{name}.{path.stem}.json")
                if result is None or "counts" not in result:
                    result = result if result and "error" in result else _change_unowned(path, operation)
                if result is None:
                    _wait_for_owner(place / f"{name}.{path.stem}.json", path, since, failures, waiting)
                    continue
                del waiting[path]
                counts = merge(counts, result.get("counts", {}))
                if "error" in result:
                    failures[path.name] = result["error"]
            if waiting:
                time.sleep(WAIT_SECONDS)
    finally:
        for path in [place / f"{name}.json", *place.glob(f"{name}.*.json")]:
            path.unlink(missing_ok=True)
    if counts.pop("unread", 0):
        failures[str(folder)] = "a reader keeps the journal (*.db-wal) in use, which holds deleted rows; repeat later"
    return Outcome(counts, failures)


def list_open(folder: Path, stem: str) -> list[str]:
    """Return the names of requests that a file has not carried out, oldest first."""
    place = folder / FOLDER
    try:
        names = {path.name for path in place.iterdir()}
    except OSError:
        return []
    found = sorted(name.removesuffix(".json") for name in names if name.startswith(_REQUEST) and name.count(".") == 1)
    return [name for name in found if "done" not in (_read(place / f"{name}.{stem}.json") or {})]


def is_open(folder: Path, name: str) -> bool:
    """Whether a request still waits for results."""
    return (folder / FOLDER / f"{name}.json").is_file()


def read_operation(folder: Path, name: str) -> Operation | None:
    """Read a request; None if it was withdrawn. Raises `ValueError` if a newer version of this package made it."""
    content = _read(folder / FOLDER / f"{name}.json")
    return None if content is None else Operation.model_validate(content)


def write_progress(folder: Path, name: str, stem: str) -> None:
    """Give a sign of life."""
    _write(folder / FOLDER / f"{name}.{stem}.json", {})


def write_result(folder: Path, name: str, stem: str, result: dict[str, Any]) -> None:
    """Report that a file is done, with `counts` or an `error`."""
    _write(folder / FOLDER / f"{name}.{stem}.json", {**result, "done": True})


def _wait_for_owner(sign: Path, path: Path, since: float, failures: dict[str, str], waiting: dict[Path, float]) -> None:
    try:
        idle = time.time() - sign.stat().st_mtime
    except OSError:
        idle = time.monotonic() - since
    if idle > ANSWER_SECONDS:
        del waiting[path]
        failures[path.name] = (
            f"the process that owns it has not answered for {ANSWER_SECONDS:.0f} s; "
            "restart the server if an older version of this package started it"
        )


def _change_unowned(path: Path, operation: Operation) -> dict[str, Any] | None:
    """Change a file that no process owns; returns None if one does."""
    lock = filelock.FileLock(path.parent / f".{path.stem}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    counts: dict[str, int] = {}
    try:
        store = SQLiteStore(path, "NORMAL")
        try:
            for deleted in run(store, operation):
                counts = merge(counts, deleted)
            if operation.rebuild or store.unused_share() > UNUSED_SHARE:
                store.vacuum()
                store.empty_journal()
        finally:
            store.close()
    except ProjectError as error:
        return {"counts": counts, "error": str(error)}
    finally:
        lock.release()
    return {"counts": counts}


def _write(path: Path, content: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
