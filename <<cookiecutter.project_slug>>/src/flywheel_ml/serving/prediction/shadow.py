"""What a shadow is asked once the answer is on its way, and logs beside it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import groupby

from flywheel_ml.prediction_log import Prediction
from flywheel_ml.serving.experiments.runner import CHUNK, MAX_ROWS
from flywheel_ml.serving.models.served_model import Experiment
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.prediction.batch import post
from flywheel_ml.serving.prediction.challenger import NOT_FINITE, RAISED
from flywheel_ml.serving.prediction.pipeline import shadow_rows
from flywheel_ml.serving.prediction.requests import Completed


class ShadowCalls:
    """Has shadows answer what was answered, and counts what the log keeps of it.

    Args:
        metrics: where rows are counted, and those that were dropped.
        wake: called in the event loop when there are rows for `take`.
    """

    def __init__(self, metrics: Metrics, wake: Callable[[], None]) -> None:
        self._metrics = metrics
        self._wake = wake
        self.rows: list[Prediction] = []
        """They wait for the log, see `take`."""

    def take(self) -> list[Prediction]:
        """The rows that wait for the log."""
        rows, self.rows = self.rows, []
        return rows

    def ask(self, experiment: Experiment, completed: Sequence[Completed]) -> None:
        """Ask a shadow for what was logged row by row."""
        if experiment.paused:
            return
        pairs = [
            (instance, row)
            for one in completed
            for instance, row in zip(one.instances, one.rows, strict=True)
            if isinstance(row, Prediction)
        ]
        room = max(0, MAX_ROWS - len(experiment.pending))
        experiment.pending += pairs[:room]
        self._metrics.predictions.dropped.inc(len(pairs[room:]))
        if not experiment.has_call_in_flight:
            self._next(experiment)

    def _next(self, experiment: Experiment) -> None:
        some, experiment.pending = experiment.pending[:CHUNK], experiment.pending[CHUNK:]
        asked = experiment.runner.submit(len(some), partial(shadow_rows, experiment.model, some))
        if asked is None:  # It is no longer in service.
            self._drop(experiment, len(some))
            return
        experiment.has_call_in_flight = True
        asked.add_done_callback(partial(post, asyncio.get_running_loop(), self._keep, experiment, len(some)))

    def _keep(self, experiment: Experiment, rows: int, asked: "Future[list[Prediction]]") -> None:
        """Take what the shadow said into the next transaction."""
        found = [] if asked.exception() else asked.result()
        experiment.breaker.record(None if len(found) == rows else RAISED if asked.exception() else NOT_FINITE)
        self._metrics.predictions.dropped.inc(rows - len(found))
        experiment.has_call_in_flight = False
        if experiment.paused:
            self._drop(experiment)
        if experiment.pending:
            self._next(experiment)
        self.rows += found
        if found:
            self._wake()

    def _drop(self, experiment: Experiment, more: int = 0) -> None:
        self._metrics.predictions.dropped.inc(len(experiment.pending) + more)
        experiment.pending = []

    def after(self, rows: Sequence[Prediction], committed: "Future[None]") -> None:
        """Rows that were taken are in the log, or not."""
        if committed.exception() is None:
            self.count(rows)
        else:
            self._metrics.predictions.dropped.inc(len(rows))

    def count(self, rows: Sequence[Prediction]) -> None:
        """Rows that were taken are in the log."""
        for version, some in groupby(rows, key=lambda row: row.model_version):
            self._metrics.predictions.predicted(version, "shadow", ["" for _ in some], degraded=False)
