"""The series that Prometheus reads: of one process, or of all workers of a server."""

import os
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector

from flywheel_ml.prediction_log import Writer
from flywheel_ml.serving.observability import shared
from flywheel_ml.serving.observability.backlog import ABSENT, Backlog

if TYPE_CHECKING:
    from flywheel_ml.serving.experiments.trial import Trial

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
PHASE_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, *SECONDS)
PHASES = ("queue", "check", "score", "write", "commit", "answer")
MOST_NAMES = 100
"""Keys that have a series of their own."""


class Laps(dict[str, float]):
    """How long each phase of a batch took, in seconds.

    Args:
        came: when the request came that waited longest for the batch (`time.perf_counter`).
    """

    def __init__(self, came: float) -> None:
        self._at = time.perf_counter()
        self["queue"] = self._at - came

    def lap(self, phase: str) -> None:
        """What was done since the last call belongs to this phase."""
        now = time.perf_counter()
        self[phase] = self.get(phase, 0.0) + now - self._at
        self._at = now


class Sampled(Gauge):
    """A gauge that asks what its value is when it is to be told; in mapped files nobody could ask."""

    def set_function(self, f: Callable[[], float]) -> None:
        """Have the value asked of this function."""
        self._function = f

    def sample(self) -> None:
        """Ask."""
        if hasattr(self, "_function"):
            self.set(self._function())


class Tallied(Histogram):
    """A histogram that counts in plain numbers first, at a third of the cost; `fold` adds them where they are told."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._tally = [0] * len(self._upper_bounds)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        """Like `observe`, told after the next `fold`; both from one thread."""
        self._tally[bisect_left(self._upper_bounds, seconds)] += 1
        self._seconds += seconds

    def fold(self) -> None:
        """Add what was noted."""
        for at, count in enumerate(self._tally):
            if count:
                self._buckets[at].inc(count)
                self._tally[at] = 0
        self._sum.inc(self._seconds)
        self._seconds = 0.0


class Metrics:
    """What one server process counts; `collect` tells what its server did.

    Args:
        counts: the folder that several workers count in (`shared.join` came before); None: this process is alone.
    """

    _log: Writer | None = None
    _lost_files_told = 0

    def __init__(self, counts: Path | None = None) -> None:
        self._counts = counts
        if counts is None:
            shared.leave()
        self.registry = registry = CollectorRegistry()
        if counts is None:
            ProcessCollector(registry=registry)
        self._requests = Counter(
            "http_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_seconds", "Time to answer, by route.", ["route"], buckets=SECONDS, registry=registry
        )
        self._answered: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self.in_flight = _sum("http_requests_in_flight", "Requests being answered.", registry)
        self.connections = _sum("http_connections", "Open connections.", registry)
        self.connections_closed = Counter(
            "http_connections_closed_idle", "Idle connections closed to make room.", registry=registry
        )
        self.connections_refused = Counter(
            "http_connections_refused", "Connections refused because none was idle.", registry=registry
        )
        self.turned_away = Counter("http_requests_turned_away", "Requests refused for want of room.", registry=registry)
        self.keys_refused = Counter("api_keys_refused", "Files of keys that were turned down.", registry=registry)
        self._limited = Counter(
            "http_requests_rate_limited", "Requests that a key sent too many.", ["key"], registry=registry
        )
        self._limited_names: set[str] = set()
        self.batches = Counter("prediction_batches", "Calls of the model.", registry=registry)
        self._predictions = Counter(
            "predictions", "Acknowledged predictions.", ["version", "variant", "prediction"], registry=registry
        )
        self._predicted: dict[tuple[str, str, str], Callable[[float], None]] = {}
        self.degraded = Counter("predictions_degraded", "Predictions not made by the champion.", registry=registry)
        self.replaced = Counter(
            "challenger_rows_replaced", "A challenger's rows that others answered.", ["reason"], registry=registry
        )
        self.dropped = Counter("shadow_rows_dropped", "Rows that the shadow did not log.", registry=registry)
        self._trials = _least("trial_running", "0 for a paused challenger or shadow.", registry, ["version", "variant"])
        self._trials_told: set[tuple[str, str]] = set()
        self._paused = Counter("trials_paused", "Breakers that opened.", ["variant"], registry=registry)
        self.labels = Counter("labels_accepted", "Labels acknowledged.", registry=registry)
        self.queued = _sum("prediction_queue", "Requests waiting to be scored or committed.", registry)
        phases = Tallied(
            "prediction_phase_seconds",
            "Time of each phase of a batch; of `queue`, the longest wait in it.",
            ["phase"],
            buckets=PHASE_SECONDS,
            registry=registry,
        )
        self._phases: dict[str, Tallied] = {phase: phases.labels(phase) for phase in PHASES}
        self._log_seconds = Tallied(
            "prediction_log_commit_seconds",
            "Time of a commit, from handing its rows over.",
            buckets=SECONDS,
            registry=registry,
        )
        self.log_failures = Counter("prediction_log_failures", "Commits that failed.", registry=registry)
        self._waiting_rows = _sum("prediction_log_waiting_rows", "Rows that wait for their commit.", registry)
        oldest = _least("prediction_log_lag_seconds", "Age of the oldest row that waits for its commit.", registry)
        self.backlog = Backlog(oldest)
        self._waiting_rows.set_function(lambda: len(self.backlog))
        self._log_up = Sampled(
            "prediction_log_up", "0 while the log takes no rows.", multiprocess_mode="livemin", registry=registry
        )
        self._log_up.set(ABSENT)  # A worker that is starting has no log yet, and must not seem to have lost it.
        self._spooled = _sum("prediction_log_spooled_rows", "Rows that wait in this process's spool.", registry)
        self._lost_files = Counter(
            "prediction_log_files_lost",
            "Log files that were deleted, moved or overwritten while open.",
            registry=registry,
        )
        self.unlogged = Counter("predictions_unlogged", "Predictions answered and not logged.", registry=registry)
        self.refused = Counter("bundle_refused", "Bundles or routings that were turned down.", registry=registry)
        self.reloads = Counter("bundle_loaded", "Bundles taken into service.", registry=registry)
        self._model = _least(
            "model_info", "1 for the model that answers.", registry, ["name", "version", "digest", "variant"]
        )
        self._model_told: tuple[str, ...] | None = None
        self._made = _least("model_age_seconds", "Time since the model that answers was trained.", registry)
        self._made.set(ABSENT)
        self.spans_lost = Counter("trace_spans_lost", "Spans that reached no collector.", registry=registry)
        self._worker = _least(
            shared.WORKER, "1 for each worker that lives.", registry, ["worker", "workers", "process"]
        )
        self._starts = Counter("worker_starts", "Starts of each worker.", ["worker"], registry=registry)

    def worker(self, number: int, workers: int) -> None:
        """Say which of how many processes this is."""
        self._worker.labels(str(number), str(workers), str(os.getpid())).set(1)
        self._starts.labels(str(number)).inc()

    def model(self, name: str, version: str, digest: str, variant: str, made_at: float) -> None:
        """Say which model answers now; `made_at` is when it was trained, in seconds since 1970."""
        self.no_model()
        self._model_told = (name, version, digest, variant)
        self._model.labels(*self._model_told).set(1)
        self._made.set(made_at)

    def log(self, log: Writer) -> None:
        """Follow a prediction log."""
        self._log_up.set_function(lambda: 0 if log.outage else 1)
        self._spooled.set_function(lambda: log.spooled)
        self._log = log

    def no_model(self) -> None:
        """Say that none does."""
        if self._model_told is not None:
            self._model.labels(*self._model_told).set(ABSENT)
        self._model_told = None
        self._made.set(ABSENT)

    def trials(self, found: "Sequence[Trial]") -> None:
        """Say which models stand beside the one that answers."""
        now = {(trial.live.ref.version, trial.live.variant): 0 if trial.paused else 1 for trial in found}
        for gone in self._trials_told - now.keys():
            self._trials.labels(*gone).set(ABSENT)
        for told, is_running in now.items():
            self._trials.labels(*told).set(is_running)
        self._trials_told = set(now)

    def paused(self, trial: "Trial") -> None:
        """Count a breaker that opened."""
        self._paused.labels(trial.live.variant).inc()
        self._trials.labels(trial.live.ref.version, trial.live.variant).set(0)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        series = (route, method, status)
        if series not in self._answered:
            # Looking a series up costs more than counting in it.
            counter = self._requests.labels(route, method, str(status))
            self._answered[series] = (counter.inc, self._seconds.labels(route).observe)
        count, observe = self._answered[series]
        count()
        observe(seconds)

    def rate_limited(self, name: str) -> None:
        """Count a request too many; `name` is a key's, and those beyond the first `MOST_NAMES` count as one."""
        if name not in self._limited_names and len(self._limited_names) >= MOST_NAMES:
            name = "other"
        self._limited_names.add(name)
        self._limited.labels(name).inc()

    def predicted(self, version: str, variant: str, names: Sequence[str], degraded: bool) -> None:
        """Count acknowledged predictions; `names` has the predicted class of each."""
        for name, count in Tally(names).items():
            series = (version, variant, name)
            if series not in self._predicted:
                self._predicted[series] = self._predictions.labels(*series).inc
            self._predicted[series](count)
        if degraded:
            self.degraded.inc(len(names))

    def batch(self, laps: Mapping[str, float]) -> None:
        """Note how long the phases of a batch took; from the event loop."""
        for phase, seconds in laps.items():
            self._phases[phase].note(seconds)
        if "commit" in laps:
            self._log_seconds.note(laps["commit"])

    def publish(self) -> None:
        """Write down what is not counted as it happens; from the event loop, ten times a second and before a scrape."""
        for gauge in (self.in_flight, self.connections, self.queued, self._waiting_rows, self._log_up, self._spooled):
            gauge.sample()
        if self._log is not None and (lost := self._log.lost_files - self._lost_files_told):
            self._lost_files.inc(lost)
            self._lost_files_told += lost
        for tallied in (*self._phases.values(), self._log_seconds):
            tallied.fold()

    def collect(self) -> Iterable[Metric]:
        """All series as they are told, of all workers; safe beside the event loop, after `publish`."""
        for family in self.registry.collect() if self._counts is None else shared.total(self._counts):
            family.samples = [one._replace(value=_told(one.name, one.value)) for one in family.samples]
            family.samples = [one for one in family.samples if one.value != ABSENT]
            yield family


def _sum(name: str, told: str, registry: CollectorRegistry) -> Sampled:
    """A gauge that is added up over the workers that live."""
    return Sampled(name, told, multiprocess_mode="livesum", registry=registry)


def _least(name: str, told: str, registry: CollectorRegistry, labels: Sequence[str] = ()) -> Gauge:
    """A gauge of which the least counts among the workers that live."""
    return Gauge(name, told, labels, multiprocess_mode="livemin", registry=registry)


def _told(name: str, value: float) -> float:
    """Two gauges hold a moment, and tell how long ago that was: a worker that hangs need not count the seconds."""
    if name == "prediction_log_lag_seconds":
        return 0.0 if value in {0.0, ABSENT} else max(0.0, time.monotonic() - value)
    if name == "model_age_seconds" and value:
        return value if value == ABSENT else max(0.0, time.time() - value)
    return value
