"""Calls of a shadow: scores rows after the response was sent, and logs them next to the champion's.

A row that the shadow failed on, or that arrived while it was paused, is logged as degraded, so that a count of the log
shows failures. Rows that do not fit into the queue are not logged: they say nothing about the model.
"""

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
from flywheel_ml.serving.prediction.pipeline import build_failed_row, build_shadow_rows
from flywheel_ml.serving.prediction.requests import CompletedRequest, Instance


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
        pairs = [
            (instance, row)
            for one in completed
            for instance, row in zip(one.instances, one.rows, strict=True)
            if isinstance(row, Prediction)
        ]
        if experiment.paused:
            self._log_failures(experiment, pairs)
            return
        room = max(0, MAX_QUEUED_ROWS - len(experiment.pending))
        experiment.pending += pairs[:room]
        self._metrics.predictions.dropped.inc(len(pairs[room:]))
        if not experiment.has_call_in_flight:
            self._submit_next(experiment)

    def _submit_next(self, experiment: RunningExperiment) -> None:
        some, experiment.pending = experiment.pending[:MAX_CALL_ROWS], experiment.pending[MAX_CALL_ROWS:]
        future = experiment.runner.submit(len(some), partial(build_shadow_rows, experiment.model, some))
        if future is None:  # The shadow is no longer in service.
            self._metrics.predictions.dropped.inc(len(experiment.pending) + len(some))
            experiment.pending = []
            return
        experiment.has_call_in_flight = True
        future.add_done_callback(partial(call_in_loop, asyncio.get_running_loop(), self._on_scored, experiment, some))

    def _on_scored(
        self,
        experiment: RunningExperiment,
        asked: Sequence[tuple[Instance, Prediction]],
        future: "Future[list[Prediction]]",
    ) -> None:
        """Add the shadow's rows to the next transaction."""
        failed = future.exception() is not None
        found = [build_failed_row(experiment.model, row) for _, row in asked] if failed else future.result()
        is_whole = not any(row.degraded for row in found)
        experiment.breaker.record(None if is_whole else RAISED if failed else NOT_FINITE)
        experiment.has_call_in_flight = False
        self._add(found)
        if experiment.paused:
            waiting, experiment.pending = experiment.pending, []
            self._log_failures(experiment, waiting)
        if experiment.pending:
            self._submit_next(experiment)

    def _log_failures(self, experiment: RunningExperiment, asked: Sequence[tuple[Instance, Prediction]]) -> None:
        self._add([build_failed_row(experiment.model, row) for _, row in asked])

    def _add(self, found: Sequence[Prediction]) -> None:
        self.rows += found
        if found:
            self._notify()

    def on_committed(self, rows: Sequence[Prediction], committed: "Future[None]") -> None:
        """Count drained rows as logged or dropped, depending on the commit."""
        if committed.exception() is None:
            self.count(rows)
        else:
            self._metrics.predictions.dropped.inc(len(rows))

    def count(self, rows: Sequence[Prediction]) -> None:
        """Count drained rows as logged."""
        self._metrics.predictions.failed.inc(sum(row.degraded for row in rows))
        answered = (row for row in rows if not row.degraded)
        for version, some in groupby(answered, key=lambda row: row.model_version):
            self._metrics.predictions.count_predictions(version, "shadow", ["" for _ in some], degraded=False)
