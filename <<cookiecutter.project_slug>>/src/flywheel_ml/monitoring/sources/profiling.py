"""Builds hourly profiles from the rows of the prediction log.

Only full hours are profiled, so that a profile is final unless late rows arrive, for example from a spool. An hour is
profiled again if the log holds more rows than were counted. If it holds fewer, they were pruned, and the profile stays:
rows that arrive for an hour after it was pruned are not counted.
"""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.monitoring.sources.logged_rows import CHUNK_ROWS, CLOCK, SOURCE, read_logged, without_labels
from flywheel_ml.monitoring.sources.packing import hash_bins, pack
from flywheel_ml.monitoring.sources.profile_store import HourlyProfile, ModelKey, ProfileStore
from flywheel_ml.monitoring.window import count_chunk
from flywheel_ml.prediction_log import Prediction, Reader
from flywheel_ml.prediction_log.selection import HOUR_US
from flywheel_ml.utils.threads import count_threads, map_in_order

FindBundle = Callable[[ModelKey], Bundle | None]
"""Opens the bundle of a model; returns None if it is not available."""


def update_profiles(
    reader: Reader,
    store: ProfileStore,
    find_bundle: FindBundle,
    now_us: int,
    advance: Callable[[int], object] = int,
) -> int:
    """Profile the hours that have none, or whose profile is out of date; returns how many. A rerun completes a crash.

    Args:
        reader: the log.
        store: its profiles.
        find_bundle: opens the bundles of the models in the log.
        now_us: current time in microseconds since 1970, UTC; the current hour is not profiled.
        advance: called with the number of rows of each profiled hour.
    """
    models = _Models(find_bundle)
    logged, profiled = reader.count_hours(until_us=_start_of_hour(now_us)), store.count_hours()
    outdated = {hour for hour, rows in logged.items() if rows > profiled.get(hour, 0)}
    for model, hours in store.find_uncounted().items():
        complete = [hour for hour in hours if hour in logged and logged[hour] == profiled.get(hour)]
        if complete and models.find(model) is not None:
            outdated.update(complete)
    threads = count_threads()
    with ThreadPoolExecutor(threads) as pool:
        found = map_in_order(pool, partial(_profile_hour, reader, models), sorted(outdated), threads)
        for hour, entries in zip(sorted(outdated), found, strict=True):
            if sum(entry.rows for entry in entries) >= logged[hour]:  # Otherwise, a prune deleted rows meanwhile.
                store.replace(hour, entries)
            advance(sum(entry.rows for entry in entries))
    return len(outdated)


class _Models:
    """The bundles that were opened so far, and the hashes of their bins."""

    def __init__(self, find_bundle: FindBundle) -> None:
        self._find_bundle = find_bundle
        self._found: dict[ModelKey, tuple[Bundle, str] | None] = {}
        self._lock = threading.Lock()

    def find(self, model: ModelKey) -> tuple[Bundle, str] | None:
        with self._lock:
            if model not in self._found:
                bundle = self._find_bundle(model)
                self._found[model] = None if bundle is None else (bundle, hash_bins(bundle.profile))
            return self._found[model]


def _profile_hour(reader: Reader, models: _Models, hour: int) -> list[HourlyProfile]:
    found: dict[tuple[ModelKey, str], HourlyProfile] = {}
    rows = reader.unlabelled(hour * HOUR_US, (hour + 1) * HOUR_US)
    while some := list(itertools.islice(rows, CHUNK_ROWS)):
        groups: dict[tuple[ModelKey, str], list[Prediction]] = {}
        for row in some:
            groups.setdefault((ModelKey(row.model_version, row.model_digest), row.variant), []).append(row)
        for key, group in groups.items():
            part = _profile_rows(hour, *key, group, models)
            found[key] = found[key].add(part) if key in found else part
    return list(found.values())


def _profile_rows(hour: int, model: ModelKey, variant: str, rows: list[Prediction], models: _Models) -> HourlyProfile:
    times = [row.timestamp_us for row in rows]
    bins, counts = "", np.empty(0, dtype=np.int64)
    if known := models.find(model):
        bundle, bins = known
        chunk = read_logged(list(without_labels(rows)), bundle)
        counts = pack(count_chunk(chunk, bundle, (), SOURCE, CLOCK), bundle.contract)
    degraded = sum(row.degraded for row in rows)
    return HourlyProfile(hour, model, variant, len(rows), degraded, min(times), max(times), bins, counts)


def _start_of_hour(time_us: int) -> int:
    return time_us // HOUR_US * HOUR_US
