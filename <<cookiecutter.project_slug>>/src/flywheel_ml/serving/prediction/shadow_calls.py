"""Calls of a shadow: scores rows after the response was sent, and logs them next to the champion's."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import groupby

from flywheel_ml.prediction_log import Prediction
from flywheel_ml.serving.experiments.runner import MAX_CALL_ROWS, MAX_QUEUED_ROWS
from flywheel_ml.serving.models.served_model import RunningExperiment
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.prediction.batch import call_in_loop
from flywheel_ml.serving.prediction.challenger_calls import NOT_FINITE, RAISED
from flywheel_ml.serving.prediction.pipeline import build_shadow_rows
from flywheel_ml.serving.prediction.requests import CompletedRequest


class ShadowCalls:
    """Sends answered rows to shadows, and counts the rows that are logged or dropped.

    Args:
        metrics: counts logged and dropped rows.
        notify: called in the event loop when there are rows for `drain`.
    """

    def __init__(self, metrics: Metrics, notify: Callable[[], None]) -> None:
        self._metrics = metrics
        self._notify = notify
        self.rows: list[Prediction] = []
        """Rows that wait for the log; see `drain`."""

    def drain(self) -> list[Prediction]:
        """Return and remove the rows that wait for the log."""
        rows, self.rows = self.rows, []
        return rows

    def enqueue(self, experiment: RunningExperiment, completed: Sequence[CompletedRequest]) -> None:
        """Queue the rows of completed requests that were logged row by row."""
        if experiment.paused:
            return
        pairs = [
            (instance, row)
            for one in completed
            for instance, row in zip(one.instances, one.rows, strict=True)
            if isinstance(row, Prediction)
        ]
        room = max(0, MAX_QUEUED_ROWS - len(experiment.pending))
        experiment.pending += pairs[:room]
        self._metrics.predictions.dropped.inc(len(pairs[room:]))
        if not experiment.has_call_in_flight:
            self._submit_next(experiment)

    def _submit_next(self, experiment: RunningExperiment) -> None:
        some, experiment.pending = experiment.pending[:MAX_CALL_ROWS], experiment.pending[MAX_CALL_ROWS:]
        future = experiment.runner.submit(len(some), partial(build_shadow_rows, experiment.model, some))
        if future is None:  # The shadow is no longer in service.
            self._drop(experiment, len(some))
            return
        experiment.has_call_in_flight = True
        future.add_done_callback(
            partial(call_in_loop, asyncio.get_running_loop(), self._on_scored, experiment, len(some))
        )

    def _on_scored(self, experiment: RunningExperiment, rows: int, future: "Future[list[Prediction]]") -> None:
        """Add the shadow's rows to the next transaction."""
        found = [] if future.exception() else future.result()
        experiment.breaker.record(None if len(found) == rows else RAISED if future.exception() else NOT_FINITE)
        self._metrics.predictions.dropped.inc(rows - len(found))
        experiment.has_call_in_flight = False
        if experiment.paused:
            self._drop(experiment)
        if experiment.pending:
            self._submit_next(experiment)
        self.rows += found
        if found:
            self._notify()

    def _drop(self, experiment: RunningExperiment, more: int = 0) -> None:
        self._metrics.predictions.dropped.inc(len(experiment.pending) + more)
        experiment.pending = []

    def on_committed(self, rows: Sequence[Prediction], committed: "Future[None]") -> None:
        """Count drained rows as logged or dropped, depending on the commit."""
        if committed.exception() is None:
            self.count(rows)
        else:
            self._metrics.predictions.dropped.inc(len(rows))

    def count(self, rows: Sequence[Prediction]) -> None:
        """Count drained rows as logged."""
        for version, some in groupby(rows, key=lambda row: row.model_version):
            self._metrics.predictions.count_predictions(version, "shadow", ["" for _ in some], degraded=False)
