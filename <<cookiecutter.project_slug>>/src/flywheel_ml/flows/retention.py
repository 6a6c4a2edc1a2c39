"""Retention of the prediction log: statistics, pruning, exports and erasures, here or through a server."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel_ml.core import paths, serving_folder
from flywheel_ml.core.bundle import BACKGROUND, CONTRACT
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.bundles import find_logged
from flywheel_ml.monitoring.alerting.webhooks import NoRedirects
from flywheel_ml.monitoring.sources.profile_store import ProfileStore, count_unprofiled
from flywheel_ml.monitoring.sources.profiling import update_profiles
from flywheel_ml.prediction_log import Reader, now_us
from flywheel_ml.prediction_log.retention import erase as erasing
from flywheel_ml.prediction_log.retention import export as exporting
from flywheel_ml.prediction_log.retention import prune as pruning
from flywheel_ml.prediction_log.retention.erase import EraseResult
from flywheel_ml.prediction_log.retention.export import ExportResult, parse_span
from flywheel_ml.prediction_log.retention.jobs import LOWEST_PRIORITY
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.prune import Limits, PruneResult
from flywheel_ml.prediction_log.retention.stats import LogStats, compute_stats
from flywheel_ml.utils.errors import ProjectError, ServingError
from flywheel_ml.utils.units import parse_size

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.5
_STORES = (Path(".dvc/cache"), Path(".dvc-storage"))


def measure(settings: Settings) -> LogStats:
    """Return the statistics of the log; raises `ProjectError` if there is none."""
    limit = parse_size(settings.log_max_size, "ML_LOG_MAX_SIZE") if settings.log_max_size else None
    return compute_stats(Log.of_settings(settings), limit)


def prune(
    project: Project, settings: Settings, limits: Limits, force: bool = False, dry_run: bool = False
) -> PruneResult:
    """Prune the log on this machine, after its profiles are up to date; running servers change their own files.

    Raises:
        ProjectError: as `retention.prune.prune`.
    """

    def profile(target: str, until_us: int) -> int:
        with ProfileStore(target) as store:
            update_profiles(Reader(target), store, lambda key: find_logged(project, settings, key), now_us())
        return count_unprofiled(target, until_us)

    return pruning.prune(Log.of_settings(settings), *limits, profile, force, dry_run)


def prune_to_limits(project: Project, settings: Settings) -> int:
    """Prune to the limits of the settings; returns the number of deleted rows, 0 without a limit or a log.

    Raises:
        ProjectError: as `prune`, or a file could not be pruned.
    """
    log = Log.of_settings(settings)
    if not settings.log_max_age and not settings.log_max_size:
        return 0
    limits = pruning.read_limits(settings)
    if not log.is_database and not log.count_files():
        return 0
    done = prune(project, settings, limits)
    if done.failures:
        name, reason = next(iter(done.failures.items()))
        raise ProjectError(f"not everything was pruned: {name}: {reason}")
    return sum(done.counts.values())


def export(
    settings: Settings,
    connect: "Callable[[], Registry]",
    since: datetime | None,
    until: datetime | None,
    output: Path | None,
) -> ExportResult:
    """Export the log on this machine; contracts come from the serving folder, else from the registry.

    Raises:
        ProjectError: as `retention.export.export`.
    """
    span = parse_span(since, until)
    return exporting.export(Log.of_settings(settings), _ContractFinder(settings, connect), *span, output)


def erase(settings: Settings, key: str) -> EraseResult:
    """Erase an entity from the log, its exports, scored files and tables on this machine.

    Raises:
        ProjectError: nothing was found for the key, or as `retention.erase.erase`.
    """
    log = Log.of_settings(settings)
    log.require()
    done = erasing.erase(log, key, list_tables(log))
    if not done.found and not done.failures and not done.resumed:
        raise ProjectError(f"nothing was found for the key '{key}'; it is the value of the contract's id column")
    return done._replace(outside=[*done.outside, *_list_unreachable(settings)])


def list_tables(log: Log) -> list[tuple[str, str]]:
    """Return the Parquet files of the project that may hold rows of an entity, with the column of its key."""
    try:
        column = Contract.load(paths.CONTRACT).id
    except (ProjectError, OSError):
        column = None
    if column is None:
        return []
    scored = {Path(job.output) for reader in log.readers() for job in reader.jobs()}
    # Scored files lie where the user wanted them; the scored input may be a table of this project.
    places = [paths.TABLE, *paths.SPLITS.values(), *Path("build").glob("*.parquet"), *scored]
    return [(str(path.resolve()), column.name) for path in dict.fromkeys(places) if path.is_file()]


def call_server(url: str, key: str, kind: str, body: dict[str, Any], progress: Callable[[str], object]) -> Any:
    """Start a job on a server and wait for it; returns its result.

    Raises:
        ServingError: the server does not answer, rejects the request, or the job fails.
    """
    started = _request(f"{url.rstrip('/')}/log/{kind}", key, body)
    progress(f"job {started['job']} on {url}")
    for state in _poll(f"{url.rstrip('/')}/log/jobs/{started['job']}", key):
        if state["state"] == "failed":
            raise ServingError(f"{url}: {state['error']}")
        if state["state"] == "succeeded":
            return state["result"]
    raise AssertionError("unreachable")


def _poll(url: str, key: str) -> Iterator[dict[str, Any]]:
    while True:
        yield _request(url, key)
        time.sleep(POLL_SECONDS)


def _request(url: str, key: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **({"X-API-Key": key} if key else {})}
    content = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, content, headers)
        # A redirect would pass the key to another host.
        with urllib.request.build_opener(NoRedirects).open(request, timeout=TIMEOUT_SECONDS) as response:
            found: dict[str, Any] = json.load(response)
        if not isinstance(found, dict) or "job" not in found:
            raise ValueError("this is no answer of a server of this project")
        return found
    except urllib.error.HTTPError as error:
        raise ServingError(f"{url} answered {error.code}: {_read_detail(error)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise ServingError(f"{url} does not answer ({reason}); check SERVER= and that the server runs") from None


def _read_detail(error: urllib.error.HTTPError) -> str:
    hints = {401: "; set ML_LOG_KEY", 403: "; ML_LOG_KEY needs a key with the scope 'log'"}
    try:
        detail = json.load(error)["detail"]
    except (OSError, ValueError, KeyError, TypeError):
        detail = "is it a server of this project?"
    return f"{detail}{hints.get(error.code, '')}"


class _ContractFinder:
    """Finds the contract of a model in the serving folder, else in the registry."""

    def __init__(self, settings: Settings, connect: "Callable[[], Registry]") -> None:
        self._folder = settings.serving_folder
        self._connect = connect

    def __call__(self, digest: str | None, version: str) -> Contract | None:
        if digest is not None and (found := serving_folder.find_bundle(self._folder, digest)) is not None:
            return Contract.load(found / CONTRACT, accept_renamed=True)
        return self._find_registered(digest, version)

    def _find_registered(self, digest: str | None, version: str) -> Contract | None:
        import tempfile

        try:
            registry = self._connect()
            found = registry.find(digest) if digest else registry.get(version)
            if found is None:
                return None
            with tempfile.TemporaryDirectory() as scratch:
                registry.download(found, Path(scratch))
                return Contract.load(Path(scratch) / CONTRACT, accept_renamed=True)
        except ProjectError:
            return None


def _list_unreachable(settings: Settings) -> list[str]:
    """Return where the entity may remain: places that this project knows and that an erasure does not change."""
    found = [f"{path}: versions of the data that DVC stored (`dvc gc`)" for path in _STORES if path.is_dir()]
    bundles = sorted(settings.serving_folder.glob(f"bundles/*/{BACKGROUND}"))
    if bundles:
        found.append(
            f"{len(bundles)} bundles in {settings.serving_folder}: some training rows, without ids, explain them"
        )
    if Path(settings.artifact_root).is_dir():
        found.append(f"{settings.artifact_root}: bundles of registered versions, likewise")
    return [*found, "the source of the raw table, which the next run reads again; and models trained on its rows"]


def lower_priority() -> None:
    """Let servers go first for the rest of this process."""
    os.nice(max(0, LOWEST_PRIORITY - os.nice(0)))
