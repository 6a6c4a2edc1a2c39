"""Reads a reference from the log: a named earlier span, or the same season of earlier years."""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flywheel_ml.core import profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import columns_from_rows
from flywheel_ml.core.params import SAME_SEASON, TEST_ROWS, MonitorParams
from flywheel_ml.core.profile import Profile
from flywheel_ml.monitoring.reference import Reference
from flywheel_ml.monitoring.sources.log_window import Log, Span, cut, sum_profiles
from flywheel_ml.monitoring.sources.logged_rows import CHUNK_ROWS, read_inputs
from flywheel_ml.monitoring.sources.packing import hash_bins, have_equal_inputs, keep_inputs, unpack_profile
from flywheel_ml.monitoring.sources.profile_store import HourlyProfile
from flywheel_ml.prediction_log import Prediction, to_datetime
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.threads import count_threads, map_in_order

SEASON_WEEKS = (52, 104, 156)
"""Weeks back to the same weekdays and the same season of the last three years."""
_WEEK_US = 7 * 24 * 3_600_000_000


def read_reference(name: str, params: MonitorParams, log: Log, bundle: Bundle, span: Span) -> Reference:
    """Read the reference with a name: `test`, `same-season`, or a span in `monitor.references` of params.yaml.

    The inputs of all models count, shadows excepted. The bundle predicts rows that another model answered, so the
    distribution of its predictions is compared with its own. Of rows that were pruned, only the inputs are compared,
    and only if the other model's profile has the same bins.

    Args:
        name: name of the reference.
        params: the named spans.
        log: the log.
        bundle: the model; its reference defines the bins.
        span: the span of the window.

    Raises:
        ConfigError: the name is unknown, its span overlaps with the window, or the log has no rows in it.
    """
    if name == TEST_ROWS:
        return Reference.of_test_rows(bundle)
    if name == SAME_SEASON:
        spans = [Span(*(time_us - weeks * _WEEK_US for time_us in span)) for weeks in SEASON_WEEKS]
        if span.until_us - span.since_us > SEASON_WEEKS[0] * _WEEK_US:
            raise ConfigError(
                f"the window is longer than {SEASON_WEEKS[0]} weeks, so it has no same season; give --last or --since"
            )
        found = _profile_spans(log, bundle, spans)
        if not found.rows:
            first, last = (f"{to_datetime(time_us):%F}" for time_us in spans[0])
            raise ConfigError(
                f"the log has no rows of the same season ({first} to {last}, or one or two years before that); "
                f"pass --reference {TEST_ROWS}"
            )
        return Reference(
            name, "the same season of earlier years", "compared with the same season of earlier years", found
        )
    if name not in params.references:
        known = [TEST_ROWS, SAME_SEASON, *params.references]
        raise ConfigError(
            f"reference '{name}' is unknown; {suggest(name, known)}, or add it to monitor.references in params.yaml"
        )
    named = params.references[name]
    reference = Span(*(int(time.timestamp() * 1_000_000) for time in (named.since, named.until)))
    if reference.since_us < span.until_us and span.since_us < reference.until_us:
        raise ConfigError(
            f"reference '{name}' ({named.since:%F %H:%M} to {named.until:%F %H:%M}) overlaps with the window; "
            "give another --since, or another reference"
        )
    found = _profile_spans(log, bundle, [reference])
    if not found.rows:
        raise ConfigError(
            f"the log has no rows of reference '{name}' ({named.since:%F %H:%M} to {named.until:%F %H:%M})"
        )
    return Reference(name, f"the rows of {named.since:%F} to {named.until:%F} ({name})", f"compared with {name}", found)


def _profile_spans(log: Log, bundle: Bundle, spans: Sequence[Span]) -> Profile:
    bins = hash_bins(bundle.profile)

    profiled = log.store.count_hours() if log.store else {}

    parts = [_count_none(bundle)]
    for span in spans:
        logged = log.reader.count_hours(*span)

        def select(entry: HourlyProfile, logged: Mapping[int, int] = logged) -> HourlyProfile | None:
            if (entry.bins, entry.model.digest) == (bins, bundle.digest):
                return entry
            # The rows tell more, because the bundle can predict them; but they may have been pruned.
            is_pruned = logged.get(entry.hour, 0) < profiled.get(entry.hour, 0)
            if not (is_pruned and have_equal_inputs(entry.bins, bins)):
                return None
            return entry._replace(counts=keep_inputs(entry.counts, bundle.profile, bundle.contract))

        known = sum_profiles(log.store, logged, span, None, select)
        if known.total is not None:
            parts.append(unpack_profile(known.total.counts, known.total.rows, bundle.profile))
        for part, is_profiled in cut(span, logged.keys() | known.hours, known.hours):
            if not is_profiled:
                parts += _profile_rows(log, bundle, part)
    return profile.merge(parts)


def _profile_rows(log: Log, bundle: Bundle, span: Span) -> list[Profile]:
    def count(rows: Sequence[Prediction]) -> Profile:
        try:
            columns = read_inputs([row.inputs for row in rows], bundle.contract.inputs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the reference has rows of another contract ({error}); give a later span") from None
        answered = ~np.array([row.degraded for row in rows], dtype=bool)
        scores = bundle.predict(columns).scores[answered].astype(np.float64)
        return profile.count(bundle.profile, {**columns, **bundle.drift_features(columns)}, scores)

    found = (one.prediction for one in log.reader.predictions(*span))
    chunks = iter(lambda: list(itertools.islice(found, CHUNK_ROWS)), [])
    threads = count_threads()
    with ThreadPoolExecutor(threads) as pool:
        parts: list[Profile] = []
        for part in map_in_order(pool, count, chunks, threads):
            parts = [profile.merge([*parts, part])]
    return parts


def _count_none(bundle: Bundle) -> Profile:
    columns = columns_from_rows(bundle.contract.inputs, [])
    return profile.count(bundle.profile, {**columns, **bundle.drift_features(columns)}, np.empty(0))
