"""Reads the window of one model from the log: full hours from their profiles, the rest and all labels from the rows."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.monitoring.sources.logged_rows import CLOCK, SOURCE, count_logged
from flywheel_ml.monitoring.sources.packing import hash_bins, unpack_out_of_range, unpack_profile
from flywheel_ml.monitoring.sources.profile_store import HourlyProfile, ModelKey, ProfileStore
from flywheel_ml.monitoring.window import Window, count_nothing, merge, name_slices
from flywheel_ml.prediction_log import SHADOW, Reader, to_datetime
from flywheel_ml.prediction_log.selection import HOUR_US


class Span(NamedTuple):
    """A time span of the log: since ≤ time < until, in microseconds since 1970, UTC."""

    since_us: int
    until_us: int


class Log(NamedTuple):
    """A prediction log and its profiles; without a store, everything is read from the rows."""

    reader: Reader
    store: ProfileStore | None = None


class ProfiledHours(NamedTuple):
    """The hours of a span that profiles answer for.

    `total` is the sum of their profiles, None if there are none. `rows` has hour → rows, `versions` version → rows,
    `variants` variant → rows that the model answered.
    """

    hours: frozenset[int] = frozenset()
    total: HourlyProfile | None = None
    rows: Mapping[int, int] = {}
    versions: Mapping[str, int] = {}
    variants: Mapping[str, int] = {}
    rows_without_digest: int = 0


def read_window(log: Log, bundle: Bundle, model: ModelKey, span: Span, slices: Sequence[str] = ()) -> Window:
    """Read the predictions of one model in a span; the result is the same with and without profiles.

    Shadows are left out. A profile that lacks late rows, or was counted in other bins than the bundle's, is not used.

    Args:
        log: the log.
        bundle: the model whose reference defines the bins.
        model: the model whose rows count.
        span: the time span.
        slices: columns by whose values quality is reported.
    """
    names = name_slices(bundle.contract, slices)
    nothing = count_nothing(bundle, names, SOURCE, CLOCK)
    if span.since_us >= span.until_us:
        return nothing
    logged, bins = log.reader.count_hours(*span), hash_bins(bundle.profile)
    known = sum_profiles(log.store, logged, span, model, lambda entry: entry if entry.bins == bins else None)
    parts = [nothing, *_build_window(known, bundle, nothing)]
    for part, is_profiled in cut(span, logged.keys() | known.hours, known.hours):
        if is_profiled:
            labelled = log.reader.labelled(*part, model.version, model.digest)
            parts.append(_keep_labelled(count_logged(labelled, bundle, names), nothing))
        else:
            rows = log.reader.predictions(*part, model.version, model_digest=model.digest)
            parts.append(count_logged(rows, bundle, names))
    return merge(parts)


def sum_profiles(
    store: ProfileStore | None,
    logged: Mapping[int, int],
    span: Span,
    model: ModelKey | None,
    select: Callable[[HourlyProfile], HourlyProfile | None],
) -> ProfiledHours:
    """Add the profiles of the full hours of a span, of one model or of all, without shadows.

    An hour is used if the log has no more rows than were profiled, and each of its profiles can be used.

    Args:
        store: the profiles.
        logged: hour → rows that the log has.
        span: the time span.
        model: as in `ProfileStore.read`.
        select: returns the profile to add, or None if it cannot be used.
    """
    if store is None:
        return ProfiledHours()
    first, end = -(-span.since_us // HOUR_US), span.until_us // HOUR_US
    hours = {h for h, rows in store.count_hours().items() if first <= h < end and rows >= logged.get(h, 0)}
    if not hours:
        return ProfiledHours()
    total: HourlyProfile | None = None
    rows, versions, variants, without_digest = Counter[int](), Counter[str](), Counter[str](), 0
    entries = store.read(min(hours), max(hours), model, excluded_variant=SHADOW)
    for hour, group in itertools.groupby(entries, key=lambda entry: entry.hour):
        of_hour = list(map(select, group))
        if None in of_hour:
            hours.discard(hour)
        elif hour in hours:
            for entry in filter(None, of_hour):
                total = entry if total is None else total.add(entry)
                rows[hour] += entry.rows
                versions[entry.model.version] += entry.rows
                variants[entry.variant] += entry.rows - entry.degraded
                without_digest += entry.rows if entry.model.digest is None else 0
    return ProfiledHours(frozenset(hours), total, rows, versions, +variants, without_digest)


def _build_window(known: ProfiledHours, bundle: Bundle, nothing: Window) -> Iterator[Window]:
    if (total := known.total) is not None:
        yield replace(
            nothing,
            profile=unpack_profile(total.counts, total.rows, bundle.profile),
            rows=total.rows,
            degraded=total.degraded,
            versions=known.versions,
            variants=known.variants,
            out_of_range=unpack_out_of_range(total.counts, bundle.contract),
            hours=known.rows,
            first=to_datetime(total.first_us).replace(tzinfo=None),
            last=to_datetime(total.last_us).replace(tzinfo=None),
            rows_without_digest=known.rows_without_digest,
        )


def _keep_labelled(window: Window, nothing: Window) -> Window:
    labelled = ("output", "truth", "slices", "labelled_variants", "delays")
    return replace(nothing, **{name: getattr(window, name) for name in labelled})


def cut(span: Span, hours: Collection[int], profiled: Collection[int]) -> Iterator[tuple[Span, bool]]:
    """Cut a span into parts that profiles answer for, and others."""
    for is_profiled, run in itertools.groupby(sorted(hours), key=profiled.__contains__):
        of_run = list(run)
        start, end = of_run[0] * HOUR_US, (of_run[-1] + 1) * HOUR_US
        yield Span(max(span.since_us, start), min(span.until_us, end)), is_profiled
