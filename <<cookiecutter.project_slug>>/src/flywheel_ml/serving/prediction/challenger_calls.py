"""Calls of challengers: assigns rows, applies the timeout, and falls back to the champion.

A request with rows for challengers is deferred until each of them has scored its rows on a thread of its own, or has
failed. It then joins a later batch. Other requests do not wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from flywheel_ml.prediction_log import new_ids
from flywheel_ml.serving.experiments.runner import MAX_CALL_ROWS
from flywheel_ml.serving.models.served_model import Deployment, RunningExperiment, ServedModel
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.prediction.batch import PendingRequest, call_in_loop
from flywheel_ml.serving.prediction.pipeline import score_or_none
from flywheel_ml.serving.prediction.requests import PredictRequest, RowPrediction

SLOW, RAISED, NOT_FINITE, BUSY, PAUSED = "slow", "raised", "not_finite", "busy", "paused"
"""Reasons why other models answered a challenger's rows."""

Predictions = dict[int, tuple[ServedModel, RowPrediction]]
"""Position of a row in its request → the challenger that answered it, and its prediction."""


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
        """Return the requests that can be answered now; the others are requeued when their challengers are done."""
        ready: list[PendingRequest] = []
        asked: dict[RunningExperiment, None] = {}
        for one in pending:
            if one.request.ids is not None:
                ready.append(one)  # It was requeued.
                continue
            try:
                request, rows_by_arm = _assign(deployment, one.request)
            except Exception as problem:
                one.respond(problem)
                continue
            waiting = _WaitingRequest(one._replace(request=request))
            for arm, chosen in rows_by_arm.items():
                experiment = deployment.arms[arm]
                if experiment is None or experiment.paused or experiment.is_overdue:
                    self._count_skipped(experiment, len(chosen))
                    continue
                waiting.calls += 1
                experiment.pending.append((waiting, chosen))
                asked[experiment] = None
            if not waiting.calls:
                ready.append(waiting.pending)
        for experiment in asked:
            if not experiment.has_call_in_flight:
                self._submit(experiment)
        return ready

    def _submit(self, experiment: RunningExperiment) -> None:
        """Submit all pending rows in one call."""
        deferred: list[Deferred] = experiment.pending
        experiment.pending = []
        instances = [(one.pending.request.instances or [])[at] for one, chosen in deferred for at in chosen]
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

    def _count_skipped(self, experiment: RunningExperiment | None, rows: int) -> None:
        reason = PAUSED if experiment is None or experiment.paused else BUSY
        self._metrics.predictions.replaced.labels(reason).inc(rows)

    def _complete(self, call: "_Call", found: Sequence[RowPrediction | None]) -> None:
        call.is_completed = True
        answers = iter(found)
        back = []
        for one, chosen in call.deferred:
            one.predictions |= {at: (call.experiment.model, row) for at in chosen if (row := next(answers)) is not None}
            one.calls -= 1
            if not one.calls:
                request = one.pending.request._replace(predictions_by_position=one.predictions)
                back.append(one.pending._replace(request=request))
        if back:
            self._requeue(back)

    def score_blocking(self, deployment: Deployment, request: PredictRequest) -> PredictRequest:
        """Have the challengers score their rows of a large request, outside the event loop; blocking."""
        request, rows_by_arm = _assign(deployment, request)
        predictions: Predictions = {}
        for arm, chosen in rows_by_arm.items():
            for at in range(0, len(chosen), MAX_CALL_ROWS):
                self._score_some(deployment.arms[arm], request, chosen[at : at + MAX_CALL_ROWS], predictions)
        return request._replace(predictions_by_position=predictions)

    def _score_some(
        self, experiment: RunningExperiment | None, request: PredictRequest, some: list[int], predictions: Predictions
    ) -> None:
        """Have a challenger score some rows of a request, and add its predictions."""
        rows = [(request.instances or [])[at] for at in some]
        call = None
        if experiment is not None and not (experiment.paused or experiment.is_overdue):
            call = experiment.runner.submit(len(rows), partial(score_or_none, experiment.model, rows))
        if experiment is None or call is None:
            self._count_skipped(experiment, len(rows))
            return
        try:
            call.exception(experiment.runner.timeout(self._timeout_seconds))
        except TimeoutError:
            self._record_failure(experiment, SLOW, len(rows))
            experiment.is_overdue = True
            call.add_done_callback(lambda _: setattr(experiment, "is_overdue", False))
            return
        found = self._record_result(experiment, call, len(rows))
        predictions |= {at: (experiment.model, row) for at, row in zip(some, found, strict=True) if row is not None}


class _WaitingRequest:
    """A request that waits for one call of each challenger that has rows of it."""

    def __init__(self, pending: PendingRequest) -> None:
        self.pending = pending
        self.calls = 0
        self.predictions: Predictions = {}


Deferred = tuple[_WaitingRequest, list[int]]
"""A request, and the positions of a challenger's rows in it."""


class _Call:
    """A call of a challenger, and the requests that wait for it."""

    def __init__(self, experiment: RunningExperiment, deferred: list[Deferred], rows: int) -> None:
        self.experiment = experiment
        self.deferred = deferred
        self.rows = rows
        self.timer: asyncio.TimerHandle | None = None
        self.is_completed = False


def _assign(deployment: Deployment, request: PredictRequest) -> tuple[PredictRequest, dict[int, list[int]]]:
    """Return the decoded request and the rows of each challenger; raises like `Codec.decode`."""
    instances = request.decode(deployment.model)
    ids = new_ids(len(instances))
    arms = deployment.assigner.assign(instances, ids, request.hints)
    rows_by_arm: dict[int, list[int]] = {}
    for at, arm in arms.items():
        rows_by_arm.setdefault(arm, []).append(at)
    assigned = {at: deployment.arm_names[arm] for at, arm in arms.items()}
    return request._replace(instances=instances, ids=ids, assigned=assigned), rows_by_arm
