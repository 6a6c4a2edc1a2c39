"""Prometheus metrics of one process, or of all workers of a server."""

import os
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector

from flywheel_ml.prediction_log import Writer
from flywheel_ml.serving.observability import multiprocess
from flywheel_ml.serving.observability.backlog import ABSENT, Backlog
from flywheel_ml.serving.observability.metric_types import (
    BufferedHistogram,
    SampledGauge,
    build_min_gauge,
    build_sum_gauge,
)
from flywheel_ml.serving.observability.phases import PHASES, Marks
from flywheel_ml.serving.observability.textfile import TextfileReader

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
PHASE_DURATION_BUCKETS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, *DURATION_BUCKETS)
COMMIT = PHASES.index("commit")
MAX_KEY_NAMES = 100
"""Maximum number of keys with a separate series."""


class HttpMetrics:
    """Requests, connections and keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Time to answer, by route.",
            ["route"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._answered: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self.in_flight = build_sum_gauge("http_requests_in_flight", "Requests being answered.", registry)
        self.in_flight_limit = build_sum_gauge(
            "http_requests_in_flight_limit", "Requests that may be answered at once.", registry
        )
        self.connections = build_sum_gauge("http_connections", "Open connections.", registry)
        self.connections_closed = Counter(
            "http_connections_closed_idle", "Idle connections closed to make room.", registry=registry
        )
        self.connections_rejected = Counter(
            "http_connections_rejected", "Connections rejected because none was idle.", registry=registry
        )
        self.requests_rejected = Counter(
            "http_requests_rejected", "Requests rejected by admission control.", registry=registry
        )
        self.key_files_rejected = Counter("api_key_files_rejected", "Key files that were rejected.", registry=registry)
        self._limited = Counter(
            "http_requests_rate_limited", "Requests beyond a key's rate limit.", ["key"], registry=registry
        )
        self._limited_names: set[str] = set()
        self.spans_dropped = Counter("trace_spans_dropped", "Spans that were not exported.", registry=registry)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        series = (route, method, status)
        if series not in self._answered:
            # Looking up a series costs more than incrementing it.
            counter = self._requests.labels(route, method, str(status))
            self._answered[series] = (counter.inc, self._seconds.labels(route).observe)
        count, observe = self._answered[series]
        count()
        observe(seconds)

    def count_rate_limited(self, name: str) -> None:
        """Count a rate-limited request; names of keys beyond the first `MAX_KEY_NAMES` count as `other`."""
        if name not in self._limited_names and len(self._limited_names) >= MAX_KEY_NAMES:
            name = "other"
        self._limited_names.add(name)
        self._limited.labels(name).inc()


class PredictionMetrics:
    """Predictions, the phases of their batches, and labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Counter("prediction_batches", "Calls of the model.", registry=registry)
        self._predictions = Counter(
            "predictions", "Acknowledged predictions.", ["version", "variant", "prediction"], registry=registry
        )
        self._predicted: dict[tuple[str, str, str], Callable[[float], None]] = {}
        self.degraded = Counter("predictions_degraded", "Predictions not made by the champion.", registry=registry)
        self.replaced = Counter(
            "challenger_rows_replaced", "A challenger's rows that other models answered.", ["reason"], registry=registry
        )
        self.dropped = Counter("shadow_rows_dropped", "Rows that the shadow did not log.", registry=registry)
        self.failed = Counter("shadow_rows_failed", "Rows that the shadow failed on.", registry=registry)
        self.unlogged = Counter("predictions_unlogged", "Predictions answered and not logged.", registry=registry)
        self.labels = Counter("labels_accepted", "Labels acknowledged.", registry=registry)
        self.queued = build_sum_gauge("prediction_queue_size", "Requests waiting to be scored or committed.", registry)
        phases = BufferedHistogram(
            "prediction_phase_duration_seconds",
            "Time of each phase of a batch; of `queue`, the longest wait in it.",
            ["phase"],
            buckets=PHASE_DURATION_BUCKETS,
            registry=registry,
        )
        self._phases: list[BufferedHistogram] = [phases.labels(phase) for phase in PHASES]
        self._commit_seconds = BufferedHistogram(
            "prediction_log_commit_duration_seconds",
            "Time of a commit, from handing its rows over.",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )

    def count_predictions(self, version: str, variant: str, names: Sequence[str], degraded: bool) -> None:
        """Count acknowledged predictions; `names` are their predicted classes."""
        for name, count in Tally(names).items():
            series = (version, variant, name)
            if series not in self._predicted:
                self._predicted[series] = self._predictions.labels(*series).inc
            self._predicted[series](count)
        if degraded:
            self.degraded.inc(len(names))

    def observe_batch(self, marks: Marks) -> None:
        """Observe the duration of each phase of a batch; call it from the event loop."""
        for phase, start, end in zip(self._phases, marks, marks[1:], strict=False):
            phase.observe_buffered(end - start)
        if len(marks) > COMMIT + 1:
            self._commit_seconds.observe_buffered(marks[COMMIT + 1] - marks[COMMIT])

    def flush(self) -> None:
        """Add buffered observations to the histograms."""
        for histogram in (*self._phases, self._commit_seconds):
            histogram.flush()


class LogMetrics:
    """The prediction log: its availability and its backlog."""

    _log: Writer | None = None
    _known_lost_files = 0

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failures = Counter("prediction_log_commit_failures", "Commits that failed.", registry=registry)
        waiting = build_sum_gauge("prediction_log_waiting_rows", "Rows that wait for their commit.", registry)
        oldest = build_min_gauge(
            "prediction_log_lag_seconds", "Age of the oldest row that waits for its commit.", registry
        )
        self.backlog = Backlog(oldest)
        waiting.set_function(lambda: len(self.backlog))
        self._up = SampledGauge(
            "prediction_log_up", "0 while the log is unavailable.", multiprocess_mode="livemin", registry=registry
        )
        self._up.set(ABSENT)  # A worker that is starting has not opened its log yet; 0 would raise a false alert.
        self._spooled = build_sum_gauge(
            "prediction_log_spooled_rows", "Rows that wait in this process's spool.", registry
        )
        self._sampled = (waiting, self._up, self._spooled)
        self._lost_files = Counter(
            "prediction_log_files_lost",
            "Log files that were deleted, moved or overwritten while open.",
            registry=registry,
        )

    def set_log(self, log: Writer) -> None:
        """Set the prediction log that the gauges observe."""
        self._up.set_function(lambda: 0 if log.outage else 1)
        self._spooled.set_function(lambda: log.spooled)
        self._log = log

    def sample(self) -> None:
        """Update the gauges, and the counter of lost files."""
        for gauge in self._sampled:
            gauge.sample()
        if self._log is not None and (lost := self._log.lost_files - self._known_lost_files):
            self._lost_files.inc(lost)
            self._known_lost_files += lost


class ModelMetrics:
    """Models in service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rejected = Counter("bundles_rejected", "Bundles or routing files that were rejected.", registry=registry)
        self.loaded = Counter("bundles_loaded", "Bundles taken into service.", registry=registry)
        self._model = build_min_gauge(
            "model_info", "1 for the model in service.", registry, ["name", "version", "digest", "variant"]
        )
        self._known_model: tuple[str, ...] | None = None
        self._trained_at = build_min_gauge(
            "model_age_seconds", "Time since the model in service was trained.", registry
        )
        self._trained_at.set(ABSENT)
        self._running = build_min_gauge(
            "experiment_running", "0 for a paused challenger or shadow.", registry, ["version", "variant"]
        )
        self._share = build_min_gauge("experiment_share", "Share of the keys that challengers answer.", registry)
        self._share.set(ABSENT)
        self._known_experiments: set[tuple[str, str]] = set()
        self._paused = Counter(
            "experiments_paused", "Experiments whose breaker opened.", ["variant"], registry=registry
        )

    def set_serving(self, name: str, version: str, digest: str, variant: str, trained_at: float) -> None:
        """Set the model that answers; `trained_at` is in seconds since 1970."""
        self.clear_serving()
        self._known_model = (name, version, digest, variant)
        self._model.labels(*self._known_model).set(1)
        self._trained_at.set(trained_at)

    def clear_serving(self) -> None:
        """Set that no model answers."""
        if self._known_model is not None:
            self._model.labels(*self._known_model).set(ABSENT)
        self._known_model = None
        self._trained_at.set(ABSENT)

    def set_experiments(self, paused: Mapping[tuple[str, str], bool]) -> None:
        """Set the running experiments: (version, variant) → whether it is paused."""
        for gone in self._known_experiments - paused.keys():
            self._running.labels(*gone).set(ABSENT)
        for labels, is_paused in paused.items():
            self._running.labels(*labels).set(0 if is_paused else 1)
        self._known_experiments = set(paused)

    def set_share(self, share: float | None) -> None:
        """Set the share of all challengers together; None without one."""
        self._share.set(ABSENT if share is None else share)

    def count_paused(self, version: str, variant: str) -> None:
        """Count an experiment whose breaker opened."""
        self._paused.labels(variant).inc()
        self._running.labels(version, variant).set(0)


class Metrics:
    """The metrics of one server process; `collect` returns those of the whole server.

    Args:
        counts: folder shared by several workers (call `register_worker` before); None for a single process.

    Attributes:
        http: requests, connections and keys.
        predictions: predictions and labels.
        log: the prediction log.
        models: models in service.
        textfiles: metrics of other processes, such as monitoring; None if they are not read.
    """

    def __init__(self, counts: Path | None = None) -> None:
        self._counts = counts
        self.textfiles: TextfileReader | None = None
        if counts is None:
            multiprocess.use_own_memory()
        self.registry = CollectorRegistry()
        if counts is None:
            ProcessCollector(registry=self.registry)
        self.http = HttpMetrics(self.registry)
        self.predictions = PredictionMetrics(self.registry)
        self.log = LogMetrics(self.registry)
        self.models = ModelMetrics(self.registry)
        self._worker = build_min_gauge(
            multiprocess.WORKER, "1 for each live worker.", self.registry, ["worker", "workers", "process"]
        )
        self._starts = Counter("worker_starts", "Starts of each worker.", ["worker"], registry=self.registry)

    def set_worker(self, number: int, workers: int) -> None:
        """Set this worker's number and the number of workers."""
        self._worker.labels(str(number), str(workers), str(os.getpid())).set(1)
        self._starts.labels(str(number)).inc()

    def publish(self) -> None:
        """Update gauges and histograms; called from the event loop, ten times a second and before a scrape."""
        for gauge in (self.http.in_flight, self.http.connections, self.predictions.queued):
            gauge.sample()
        self.log.sample()
        self.predictions.flush()

    def collect(self) -> Iterable[Metric]:
        """Return all series of all workers; may run on another thread, after `publish`."""
        for family in self.registry.collect() if self._counts is None else multiprocess.aggregate(self._counts):
            family.samples = [one._replace(value=_to_age(one.name, one.value)) for one in family.samples]
            family.samples = [one for one in family.samples if one.value != ABSENT]
            yield family
        if self.textfiles is not None:
            yield from self.textfiles.collect()


def _to_age(name: str, value: float) -> float:
    """Convert the two gauges that hold a time to an age, so that a worker that hangs still reports a growing age."""
    if name == "prediction_log_lag_seconds":
        return 0.0 if value in {0.0, ABSENT} else max(0.0, time.monotonic() - value)
    if name == "model_age_seconds" and value:
        return value if value == ABSENT else max(0.0, time.time() - value)
    return value
