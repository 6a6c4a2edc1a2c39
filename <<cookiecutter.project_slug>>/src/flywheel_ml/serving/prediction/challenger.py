"""Rows for a challenger: whose they are, how long they are waited for, and what becomes of them without it.

A request with such rows stands aside until the challenger has answered them on its own thread, or failed to, and then
joins a later batch; nobody else waits.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from flywheel_ml.core.serving_folder import Challenger
from flywheel_ml.prediction_log import new_ids
from flywheel_ml.serving.experiments.assignment import assigned_rows
from flywheel_ml.serving.experiments.runner import CHUNK
from flywheel_ml.serving.models.served_model import Deployment, Experiment, ServedModel
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.prediction.batch import Waiting, post
from flywheel_ml.serving.prediction.pipeline import score_each
from flywheel_ml.serving.prediction.requests import PredictRequest, RowPrediction

SLOW, RAISED, NOT_FINITE, BUSY = "slow", "raised", "no number", "busy"
"""Why other models answered a challenger's rows."""


class ChallengerCalls:
    """Has challengers answer their rows.

    Args:
        metrics: where rows are counted that others had to answer.
        seconds: how long a challenger may take for each `CHUNK` rows.
        come_back: called in the event loop with requests that need wait no longer.
    """

    def __init__(self, metrics: Metrics, seconds: float, come_back: Callable[[list[Waiting]], None]) -> None:
        self._metrics = metrics
        self._seconds = seconds
        self._come_back = come_back

    def ready(self, deployment: Deployment, waiting: list[Waiting]) -> list[Waiting]:
        """Those that can be answered now; the others come back when the challenger has answered, or failed to."""
        experiment = deployment.challenger
        if experiment is None or experiment.paused:
            return waiting
        now: list[Waiting] = []
        aside: list[tuple[Waiting, list[int]]] = []
        for one in waiting:
            if one.request.ids is not None:
                now.append(one)  # It has come back.
                continue
            try:
                request, chosen = _assigned(deployment.model, experiment, one.request)
            except Exception as problem:
                one.respond(problem)
                continue
            one = one._replace(request=request)  # noqa: PLW2901
            if chosen and not experiment.is_stuck:
                aside.append((one, chosen))
            else:
                self._metrics.predictions.replaced.labels(BUSY).inc(len(chosen))
                now.append(one)
        if aside:
            experiment.pending += aside
            if not experiment.has_call_in_flight:
                self._ask(experiment)
        return now

    def _ask(self, experiment: Experiment) -> None:
        """Hand over the rows that are pending, all in one call."""
        aside: list[tuple[Waiting, list[int]]] = experiment.pending
        experiment.pending = []
        instances = [(one.request.instances or [])[at] for one, chosen in aside for at in chosen]
        call = _Call(experiment, aside, len(instances))
        asked = experiment.runner.submit(len(instances), lambda: score_each(experiment.model, instances))
        if asked is None:
            self._failed(experiment, BUSY, call.rows)
            self._settle(call, [None] * call.rows)
            return
        experiment.has_call_in_flight = True
        loop = asyncio.get_running_loop()
        seconds = experiment.runner.timeout(self._seconds)
        call.timer = loop.call_later(seconds, self._late, call, seconds)
        asked.add_done_callback(partial(post, loop, self._on_answered, call))

    def _late(self, call: "_Call", seconds: float) -> None:
        # One that never returns is counted again and again, or its breaker would never open.
        experiment = call.experiment
        experiment.is_stuck = True
        self._failed(experiment, SLOW, 0 if call.is_settled else call.rows)
        if not experiment.paused:
            call.timer = asyncio.get_running_loop().call_later(seconds, self._late, call, seconds)
        if not call.is_settled:
            self._settle(call, [None] * call.rows)
        if experiment.pending:
            others = _Call(experiment, experiment.pending, sum(len(chosen) for _, chosen in experiment.pending))
            experiment.pending = []
            self._metrics.predictions.replaced.labels(BUSY).inc(others.rows)
            self._settle(others, [None] * others.rows)

    def _on_answered(self, call: "_Call", asked: "Future[list[RowPrediction | None]]") -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.experiment.is_stuck = call.experiment.has_call_in_flight = False
        if call.experiment.pending:
            self._ask(call.experiment)
        if not call.is_settled:
            self._settle(call, self._judged(call.experiment, asked, call.rows))

    def _judged(
        self, experiment: Experiment, asked: "Future[list[RowPrediction | None]]", rows: int
    ) -> Sequence[RowPrediction | None]:
        """What the challenger answered, its breaker told how that went."""
        if asked.exception() is not None:
            self._failed(experiment, RAISED, rows)
            return [None] * rows
        found = asked.result()
        if lacking := found.count(None):
            self._failed(experiment, NOT_FINITE, lacking)
        else:
            experiment.breaker.record(None)
        return found

    def _failed(self, experiment: Experiment, reason: str, rows: int) -> None:
        self._metrics.predictions.replaced.labels(reason).inc(rows)
        experiment.breaker.record(reason)

    def _settle(self, call: "_Call", found: Sequence[RowPrediction | None]) -> None:
        call.is_settled = True
        answers = iter(found)
        back = []
        for one, chosen in call.aside:
            answered = {at: (call.experiment.model, row) for at in chosen if (row := next(answers)) is not None}
            back.append(one._replace(request=one.request._replace(answered=answered)))
        self._come_back(back)

    def ask_and_wait(self, model: ServedModel, experiment: Experiment, request: PredictRequest) -> PredictRequest:
        """As `ready`, for a large request outside the event loop."""
        request, chosen = _assigned(model, experiment, request)
        answered: dict[int, tuple[ServedModel, RowPrediction]] = {}
        instances = request.instances or []
        for some in (chosen[at : at + CHUNK] for at in range(0, len(chosen), CHUNK)):
            rows = [instances[at] for at in some]
            call = None
            if not (experiment.paused or experiment.is_stuck):
                call = experiment.runner.submit(len(rows), partial(score_each, experiment.model, rows))
            if call is None:
                self._metrics.predictions.replaced.labels(BUSY).inc(len(rows))
                continue
            try:
                call.exception(experiment.runner.timeout(self._seconds))
            except TimeoutError:
                self._failed(experiment, SLOW, len(rows))
                experiment.is_stuck = True
                call.add_done_callback(lambda _: setattr(experiment, "is_stuck", False))
                continue
            found = self._judged(experiment, call, len(rows))
            answered |= {at: (experiment.model, row) for at, row in zip(some, found, strict=True) if row is not None}
        return request._replace(answered=answered)


class _Call:
    """Rows that a challenger was asked for, and the requests that stand aside for them."""

    def __init__(self, experiment: Experiment, aside: list[tuple[Waiting, list[int]]], rows: int) -> None:
        self.experiment = experiment
        self.aside = aside
        self.rows = rows
        self.timer: asyncio.TimerHandle | None = None
        self.is_settled = False


def _assigned(model: ServedModel, experiment: Experiment, request: PredictRequest) -> tuple[PredictRequest, list[int]]:
    """A decoded request, and the places of its rows that go to the challenger; raises as `Codec.decode`."""
    instances = request.decoded(model)
    ids = new_ids(len(instances))
    asked = experiment.spec
    chosen = (
        assigned_rows(asked, model.id_column, instances, ids, request.hints) if isinstance(asked, Challenger) else []
    )
    return request._replace(instances=instances, ids=ids), chosen
