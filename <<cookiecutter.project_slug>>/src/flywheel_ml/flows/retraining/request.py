"""What a retraining was asked for, and the folder that it works in."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.core.contract import Contract
from flywheel_ml.flows import run_state
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.utils import config_model, timestamps
from flywheel_ml.utils.errors import Busy, ConfigError, ProjectError
from flywheel_ml.utils.files import remove_folder, remove_leftovers, write_json

FOLDER = run_state.FOLDER / "retrain"
REQUEST, CLONE, DATA, RESULT = "request.json", "clone", "data.json", "result.json"
LOCK_SECONDS = 60


class Request(config_model.StrictModel):
    """A retraining.

    Attributes:
        id: names the folder and the branch.
        commit: the commit whose code and parameters are used.
        asked: the date that was asked for; empty for the current time.
        until: `data.until` of the retraining; empty if rows have no time.
        with_log: whether labelled rows of the prediction log are added to the table.
    """

    id: str
    commit: str
    asked: str
    until: str
    with_log: bool

    @property
    def branch(self) -> str:
        """Branch that the result is committed on."""
        return f"retrain/{self.id}"

    @classmethod
    def make(cls, commit: str, contract: Contract, as_of: str, with_log: bool) -> "Request":
        """Make a request for the rows before `as_of`, or before the current time if that is empty.

        Raises:
            ConfigError: `as_of` is not a date, or rows have no time.
        """
        now = datetime.now(UTC)
        until = _find_until(contract, as_of, now)
        return cls(
            id=f"{now:%Y%m%d}-{secrets.token_hex(4)}", commit=commit, asked=as_of, until=until, with_log=with_log
        )

    def asks_for(self, other: "Request") -> bool:
        """Whether another request asks for the same."""
        return (self.commit, self.asked, self.with_log) == (other.commit, other.asked, other.with_log)


class Workspace(NamedTuple):
    """The folder of one retraining, absolute, with its request."""

    folder: Path
    request: Request

    @property
    def clone(self) -> Path:
        """The copy of the repository."""
        return self.folder / CLONE

    @property
    def result(self) -> Path:
        """The file with the result."""
        return self.folder / RESULT


@contextmanager
def open_workspace(asked: Request) -> Iterator[Workspace]:
    """Lock a folder for a retraining: that of a killed process that was asked for the same, or a new one.

    Folders that killed processes left for other requests are removed. The folder is removed when the block ends, also
    after an error that a user can act on; the branch has the result.
    """
    with ExitStack() as stack:
        with lock_project(FOLDER, "begin", wait_seconds=LOCK_SECONDS):
            request = _resume(asked) or asked
            stack.enter_context(lock_project(FOLDER, request.id, doing="retrain"))
            write_json(FOLDER / request.id / REQUEST, request.model_dump(mode="json"))
        is_done = True
        try:
            yield Workspace((FOLDER / request.id).absolute(), request)
        except (KeyboardInterrupt, Interrupted):
            is_done = False
            raise
        finally:
            if is_done:
                with lock_project(FOLDER, "begin", wait_seconds=LOCK_SECONDS):
                    _remove(request.id)
                    _remove_lock(request.id)


class Interrupted(ProjectError):
    """The process of a retraining died; the same command completes it."""


def _resume(asked: Request) -> Request | None:
    """Find the request of a killed process that asks for the same, and remove those that do not."""
    remove_leftovers(FOLDER)
    found = None
    for folder in sorted(path for path in FOLDER.glob("[!.]*") if path.is_dir()):
        try:
            with lock_project(FOLDER, folder.name):
                left = _read(folder)
                if found is None and left is not None and left.asks_for(asked):
                    found = left
                    continue
                _remove(folder.name)
        except Busy:
            continue
        _remove_lock(folder.name)
    return found


def _read(folder: Path) -> Request | None:
    try:
        return config_model.load(folder / REQUEST, Request)
    except ConfigError:
        return None


def _remove(name: str) -> None:
    if (FOLDER / name).is_dir():
        remove_folder(FOLDER / name)


def _remove_lock(name: str) -> None:
    for suffix in ("lock", "pid"):
        (FOLDER / f".{name}.{suffix}").unlink(missing_ok=True)


def _find_until(contract: Contract, as_of: str, now: datetime) -> str:
    if contract.time is None:
        if as_of:
            raise ConfigError("contract.yaml: no column has role time, so AS_OF cannot select rows; drop it")
        return ""
    if not as_of:
        # A time column without a zone is taken to be in UTC.
        local = contract.to_time_zone(now) if contract.time.time_zone else now.replace(tzinfo=None)
        return local.isoformat(timespec="seconds")
    try:
        stamp = timestamps.parse_iso(as_of)
    except ValueError:
        raise ConfigError(f"AS_OF: '{as_of}' is not a date; write it as 2013-11-01") from None
    return contract.to_time_zone(stamp).isoformat()
