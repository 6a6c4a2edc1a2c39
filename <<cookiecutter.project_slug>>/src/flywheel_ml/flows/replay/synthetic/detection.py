"""Compares what monitoring found with the known faults, and with an alarm every N rows; pure."""

from collections.abc import Iterator, Sequence

from flywheel_ml.flows.replay.synthetic.stream import Watched
from flywheel_ml.utils import config_model


class Detection(config_model.StrictModel):
    """How soon a fault was found.

    `delay` counts windows from its first one, which is 1; None: not found while it lasted. `periodic_delays` are those
    of the alarms every N rows, in the order of `SyntheticResult.periodic`.
    """

    name: str
    what: str
    limit: int
    delay: int | None
    sign: str
    periodic_delays: tuple[int | None, ...]

    @property
    def is_late(self) -> bool:
        """Whether monitoring did not find it within its limit."""
        return self.delay is None or self.delay > self.limit


class Alarms(config_model.StrictModel):
    """The windows in which a detector raised an alarm: with a fault, and without one.

    `every` is the N of a detector that alarms every N rows; None for monitoring.
    """

    every: int | None
    true: int
    false: int
    clean_windows: int
    found: int
    in_time: int

    @property
    def precision(self) -> float:
        """Share of the alarms that are about a fault; 1 without alarms."""
        return self.true / (self.true + self.false) if self.true + self.false else 1.0


class SyntheticResult(config_model.StrictModel):
    """What the synthetic replay found, and what detectors that alarm every N rows would have."""

    seed: int
    window_rows: int
    windows: int
    detections: tuple[Detection, ...]
    monitoring: Alarms
    periodic: tuple[Alarms, ...]
    seconds: float

    @property
    def late(self) -> list[str]:
        """Names of the faults that were not found in time."""
        return [one.name for one in self.detections if one.is_late]


def list_periodic_alarms(watched: Sequence[Watched], every: int) -> list[bool]:
    """List for each window whether a detector that alarms every N rows does so in it."""
    seen, found = 0, []
    for one in watched:
        found.append((seen + one.rows) // every > seen // every)
        seen += one.rows
    return found


def list_detections(watched: Sequence[Watched], every: Sequence[int]) -> Iterator[Detection]:
    """List each fault with its delays."""
    periodic = [list_periodic_alarms(watched, rows) for rows in every]
    for episode in dict.fromkeys(one.window.episode for one in watched if one.window.fault is not None):
        own = [at for at, one in enumerate(watched) if one.window.episode == episode]
        fault = watched[own[0]].window.fault
        assert fault is not None
        delay = _find_first([bool(watched[at].sign) for at in own])
        yield Detection(
            name=fault.name,
            what=fault.what,
            limit=fault.limit,
            delay=delay,
            sign="" if delay is None else watched[own[delay - 1]].sign,
            periodic_delays=tuple(_find_first([alarms[at] for at in own]) for alarms in periodic),
        )


def count_alarms(
    watched: Sequence[Watched], detections: Sequence[Detection], every: Sequence[int]
) -> tuple[Alarms, tuple[Alarms, ...]]:
    """Count alarms by whether their window has a fault, and faults that were found: monitoring, then every N rows."""
    limits = [one.limit for one in detections]
    monitoring = _count(watched, [bool(one.alerts) for one in watched], [one.delay for one in detections], limits, None)
    periodic = (
        _count(
            watched,
            list_periodic_alarms(watched, rows),
            [one.periodic_delays[at] for one in detections],
            limits,
            rows,
        )
        for at, rows in enumerate(every)
    )
    return monitoring, tuple(periodic)


def _count(
    watched: Sequence[Watched],
    alarms: Sequence[bool],
    delays: Sequence[int | None],
    limits: Sequence[int],
    every: int | None,
) -> Alarms:
    has_fault = [one.window.fault is not None for one in watched]
    return Alarms(
        every=every,
        true=sum(alarm and fault for alarm, fault in zip(alarms, has_fault, strict=True)),
        false=sum(alarm and not fault for alarm, fault in zip(alarms, has_fault, strict=True)),
        clean_windows=has_fault.count(False),
        found=sum(delay is not None for delay in delays),
        in_time=sum(delay is not None and delay <= limit for delay, limit in zip(delays, limits, strict=True)),
    )


def _find_first(alarms: Sequence[bool]) -> int | None:
    return next((place for place, alarm in enumerate(alarms, start=1) if alarm), None)
