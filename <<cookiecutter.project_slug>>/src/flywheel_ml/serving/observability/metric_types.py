"""Metric types for a server of several processes that counts more often than it is scraped."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram


class SampledGauge(Gauge):
    """A gauge that asks what its value is when it is to be told; in mapped files nobody could ask."""

    def set_function(self, f: Callable[[], float]) -> None:
        """Have the value asked of this function."""
        self._function = f

    def sample(self) -> None:
        """Ask."""
        if hasattr(self, "_function"):
            self.set(self._function())


class BufferedHistogram(Histogram):
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


def sum_gauge(name: str, told: str, registry: CollectorRegistry) -> SampledGauge:
    """A gauge that is added up over the workers that live."""
    return SampledGauge(name, told, multiprocess_mode="livesum", registry=registry)


def least_gauge(name: str, told: str, registry: CollectorRegistry, labels: Sequence[str] = ()) -> Gauge:
    """A gauge of which the least counts among the workers that live."""
    return Gauge(name, told, labels, multiprocess_mode="livemin", registry=registry)
