"""Calls of a challenger: assigns rows, applies the timeout, and falls back to the champion.

A request with rows for the challenger is deferred until the challenger has scored them on its own thread, or has
failed. It then joins a later batch. Other requests do not wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from flywheel_ml.core.serving_folder import Challenger
from flywheel_ml.prediction_log import new_ids
from flywheel_ml.serving.experiments.assignment import assign_rows
from flywheel_ml.serving.experiments.runner import MAX_CALL_ROWS
from flywheel_ml.serving.models.served_model import Deployment, RunningExperiment, ServedModel
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.prediction.batch import PendingRequest, call_in_loop
from flywheel_ml.serving.prediction.pipeline import score_or_none
from flywheel_ml.serving.prediction.requests import PredictRequest, RowPrediction

SLOW, RAISED, NOT_FINITE, BUSY, PAUSED = "slow", "raised", "not_finite", "busy", "paused"
"""Reasons why other models answered a challenger's rows."""


class ChallengerCalls:
    """Sends rows to challengers and collects their predictions.

    Args:
        metrics: counts rows that other models had to answer.
        timeout_seconds: timeout for each `MAX_CALL_ROWS` rows.
        requeue: called in the event loop with requests that no longer wait for the challenger.
    """

    def __init__(
        self, metrics: Metrics, timeout_seconds: float, requeue: Callable[[list[PendingRequest]], None]
    ) -> None:
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._requeue = requeue

    def dispatch(self, deployment: Deployment, pending: list[PendingRequest]) -> list[PendingRequest]:
        """Return the requests that can be answered now; the others are requeued when the challenger is done."""
        experiment = deployment.challenger
        if experiment is None:
            return pending
        ready: list[PendingRequest] = []
        deferred: list[tuple[PendingRequest, list[int]]] = []
        for one in pending:
            if one.request.ids is not None:
                ready.append(one)  # It was requeued.
                continue
            try:
                request, chosen = _assign(deployment.model, experiment, one.request)
            except Exception as problem:
                one.respond(problem)
                continue
            one = one._replace(request=request)  # noqa: PLW2901
            if chosen and not (experiment.paused or experiment.is_overdue):
                deferred.append((one, chosen))
            else:
                self._count_skipped(experiment, len(chosen))
                ready.append(one)
        if deferred:
            experiment.pending += deferred
            if not experiment.has_call_in_flight:
                self._submit(experiment)
        return ready

    def _submit(self, experiment: RunningExperiment) -> None:
        """Submit all pending rows in one call."""
        deferred: list[tuple[PendingRequest, list[int]]] = experiment.pending
        experiment.pending = []
        instances = [(one.request.instances or [])[at] for one, chosen in deferred for at in chosen]
        call = _Call(experiment, deferred, len(instances))
        future = experiment.runner.submit(len(instances), lambda: score_or_none(experiment.model, instances))
        if future is None:
            self._record_failure(experiment, BUSY, call.rows)
            self._complete(call, [None] * call.rows)
            return
        experiment.has_call_in_flight = True
        loop = asyncio.get_running_loop()
        seconds = experiment.runner.timeout(self._timeout_seconds)
        call.timer = loop.call_later(seconds, self._on_timeout, call, seconds)
        future.add_done_callback(partial(call_in_loop, loop, self._on_answered, call))

    def _on_timeout(self, call: "_Call", seconds: float) -> None:
        # A call that never returns is counted again after each timeout; otherwise the breaker would never open.
        experiment = call.experiment
        experiment.is_overdue = True
        self._record_failure(experiment, SLOW, 0 if call.is_completed else call.rows)
        if not experiment.paused:
            call.timer = asyncio.get_running_loop().call_later(seconds, self._on_timeout, call, seconds)
        if not call.is_completed:
            self._complete(call, [None] * call.rows)
        if experiment.pending:
            others = _Call(experiment, experiment.pending, sum(len(chosen) for _, chosen in experiment.pending))
            experiment.pending = []
            self._metrics.predictions.replaced.labels(BUSY).inc(others.rows)
            self._complete(others, [None] * others.rows)

    def _on_answered(self, call: "_Call", future: "Future[list[RowPrediction | None]]") -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.experiment.is_overdue = call.experiment.has_call_in_flight = False
        if call.experiment.pending:
            self._submit(call.experiment)
        if not call.is_completed:
            self._complete(call, self._record_result(call.experiment, future, call.rows))

    def _record_result(
        self, experiment: RunningExperiment, future: "Future[list[RowPrediction | None]]", rows: int
    ) -> Sequence[RowPrediction | None]:
        """Return the challenger's predictions and record the outcome in its breaker."""
        if future.exception() is not None:
            self._record_failure(experiment, RAISED, rows)
            return [None] * rows
        found = future.result()
        if lacking := found.count(None):
            self._record_failure(experiment, NOT_FINITE, lacking)
        else:
            experiment.breaker.record(None)
        return found

    def _record_failure(self, experiment: RunningExperiment, reason: str, rows: int) -> None:
        self._metrics.predictions.replaced.labels(reason).inc(rows)
        experiment.breaker.record(reason)

    def _count_skipped(self, experiment: RunningExperiment, rows: int) -> None:
        if rows:
            self._metrics.predictions.replaced.labels(PAUSED if experiment.paused else BUSY).inc(rows)

    def _complete(self, call: "_Call", found: Sequence[RowPrediction | None]) -> None:
        call.is_completed = True
        answers = iter(found)
        back = []
        for one, chosen in call.deferred:
            predictions = {at: (call.experiment.model, row) for at in chosen if (row := next(answers)) is not None}
            back.append(one._replace(request=one.request._replace(predictions_by_position=predictions)))
        self._requeue(back)

    def score_blocking(
        self, model: ServedModel, experiment: RunningExperiment, request: PredictRequest
    ) -> PredictRequest:
        """Have the challenger score its rows of a large request, outside the event loop; blocking."""
        request, chosen = _assign(model, experiment, request)
        predictions: dict[int, tuple[ServedModel, RowPrediction]] = {}
        instances = request.instances or []
        for some in (chosen[at : at + MAX_CALL_ROWS] for at in range(0, len(chosen), MAX_CALL_ROWS)):
            rows = [instances[at] for at in some]
            call = None
            if not (experiment.paused or experiment.is_overdue):
                call = experiment.runner.submit(len(rows), partial(score_or_none, experiment.model, rows))
            if call is None:
                self._count_skipped(experiment, len(rows))
                continue
            try:
                call.exception(experiment.runner.timeout(self._timeout_seconds))
            except TimeoutError:
                self._record_failure(experiment, SLOW, len(rows))
                experiment.is_overdue = True
                call.add_done_callback(lambda _: setattr(experiment, "is_overdue", False))
                continue
            found = self._record_result(experiment, call, len(rows))
            predictions |= {at: (experiment.model, row) for at, row in zip(some, found, strict=True) if row is not None}
        return request._replace(predictions_by_position=predictions)


class _Call:
    """A call of the challenger, and the requests that wait for it."""

    def __init__(
        self, experiment: RunningExperiment, deferred: list[tuple[PendingRequest, list[int]]], rows: int
    ) -> None:
        self.experiment = experiment
        self.deferred = deferred
        self.rows = rows
        self.timer: asyncio.TimerHandle | None = None
        self.is_completed = False


def _assign(
    model: ServedModel, experiment: RunningExperiment, request: PredictRequest
) -> tuple[PredictRequest, list[int]]:
    """Return the decoded request and the positions of the challenger's rows; raises like `Codec.decode`."""
    instances = request.decode(model)
    ids = new_ids(len(instances))
    spec = experiment.spec
    chosen = assign_rows(spec, model.id_column, instances, ids, request.hints) if isinstance(spec, Challenger) else []
    return request._replace(instances=instances, ids=ids, assigned=chosen), chosen
