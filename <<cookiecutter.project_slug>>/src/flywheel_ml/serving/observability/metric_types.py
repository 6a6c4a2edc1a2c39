"""Metric types for a server of several processes that updates metrics more often than it is scraped."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram


class SampledGauge(Gauge):
    """A gauge that reads its value from a function on `sample`, because mapped files cannot call functions."""

    def set_function(self, f: Callable[[], float]) -> None:
        """Set the function that returns the value."""
        self._function = f

    def sample(self) -> None:
        """Set the gauge to the current value of its function."""
        if hasattr(self, "_function"):
            self.set(self._function())


class BufferedHistogram(Histogram):
    """A histogram that counts in plain numbers, at a third of the cost; `flush` adds them to the exported series."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._tally = [0] * len(self._upper_bounds)
        self._seconds = 0.0

    def observe_buffered(self, seconds: float) -> None:
        """Like `observe`, exported after the next `flush`; call both from one thread."""
        self._tally[bisect_left(self._upper_bounds, seconds)] += 1
        self._seconds += seconds

    def flush(self) -> None:
        """Add the buffered observations to the exported series."""
        for at, count in enumerate(self._tally):
            if count:
                self._buckets[at].inc(count)
                self._tally[at] = 0
        self._sum.inc(self._seconds)
        self._seconds = 0.0


def build_sum_gauge(name: str, documentation: str, registry: CollectorRegistry) -> SampledGauge:
    """Create a gauge that reports the sum over the live workers."""
    return SampledGauge(name, documentation, multiprocess_mode="livesum", registry=registry)


def build_min_gauge(name: str, documentation: str, registry: CollectorRegistry, labels: Sequence[str] = ()) -> Gauge:
    """Create a gauge that reports the minimum over the live workers."""
    return Gauge(name, documentation, labels, multiprocess_mode="livemin", registry=registry)
