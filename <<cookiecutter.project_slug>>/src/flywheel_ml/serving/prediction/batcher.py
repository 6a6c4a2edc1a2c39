"""The hot path: bodies in, committed rows and answers out.

What came in while the last batch was worked on is the next batch: checked, scored by one call of the model,
committed by one transaction, answered. There is no timer, so a lone request waits for nobody. What is done for each
batch before the commit is in pipeline.py.

A request with rows for a challenger stands aside meanwhile and joins a later batch (challenger.py); a shadow is asked
once the answer is on its way (shadow.py).
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from flywheel_ml.prediction_log import Row, Unavailable, Writer
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.models.served_model import Deployment
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.phases import Marks, durations
from flywheel_ml.serving.observability.tracing import NO_REQUEST, RequestContext
from flywheel_ml.serving.prediction.batch import Batch, Respond, Waiting, complete_batches
from flywheel_ml.serving.prediction.challenger import ChallengerCalls
from flywheel_ml.serving.prediction.pipeline import can_log_blocks, complete, complete_block
from flywheel_ml.serving.prediction.requests import Completed, PredictRequest
from flywheel_ml.serving.prediction.shadow import ShadowCalls
from flywheel_ml.utils.errors import ProjectError

INLINE_BYTES = 32_768
"""A larger body is worked on beside the event loop, so that others need not wait for it."""
BATCH_REQUESTS = 128
"""Most requests in a batch: so many take some milliseconds, and health checks wait no longer."""

UNLOGGED = (b"x-prediction-logged", b"false")
"""The header of an answer whose predictions are in no log."""


class Unlogged(bytes):
    """An answer that was sent although nothing could be logged."""


class Batcher:
    """Answers prediction requests, within one event loop; `close` when done.

    Args:
        log: where every prediction is committed before it is acknowledged.
        metrics: where it is counted.
        answers_unlogged: whether answers are sent, as `Unlogged`, while the log takes nothing.
    """

    def __init__(
        self, log: Writer, metrics: Metrics, challenger_timeout_seconds: float = 0.05, answers_unlogged: bool = False
    ) -> None:
        self._log = log
        self._answers_unlogged = answers_unlogged
        self._metrics = metrics
        self._challenger_calls = ChallengerCalls(metrics, challenger_timeout_seconds, self._come_back)
        self._shadow_calls = ShadowCalls(metrics, self._wake)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._waiting: list[Waiting] = []
        self._is_busy = False
        self._is_stalled = False
        self._commits = 0
        self.connections: Collection[object] = range(BATCH_REQUESTS)
        """Of clients; a server replaces it by those that it has."""
        metrics.predictions.queued.set_function(lambda: len(self._waiting))

    async def predict(self, deployment: Deployment, request: PredictRequest) -> bytes:
        """The response to a request, after its rows were committed.

        Raises:
            Problem: 400 or 422 for the body; 503 when the log takes nothing.
        """
        if len(request.body) > INLINE_BYTES:
            return await self.predict_alone(
                deployment, request, lambda marks: self._complete_alone(deployment, request, marks)
            )
        response: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self.submit(deployment, request, lambda found: None if response.done() else response.set_result(found))
        found = await response
        if isinstance(found, Exception):
            raise found
        return found

    async def predict_alone(
        self, deployment: Deployment, request: PredictRequest, complete: Callable[[Marks], Completed]
    ) -> bytes:
        """The response to one large request, completed and committed outside the event loop.

        Args:
            deployment: the model that answers, and experiments.
            request: that is to be completed.
            complete: does so, and notes its phases.

        Raises:
            Problem: as `predict`.
            Exception: as `complete`.
        """
        loop = asyncio.get_running_loop()
        completed, marks = await loop.run_in_executor(self._pool, self._commit_alone, request, complete)
        if request.context.trace is not None:
            request.context.trace.phases = durations(marks)
        self._count(deployment, [completed])
        self._metrics.predictions.batch(marks)
        if deployment.shadow is not None:
            self._shadow_calls.ask(deployment.shadow, [completed])
        return completed.content

    def submit(self, deployment: Deployment, request: PredictRequest, callback: Respond) -> None:
        """As `predict`, for a body of at most `INLINE_BYTES`; `callback` is called with the response or the error."""
        self._waiting.append(Waiting(deployment, request, callback))
        if self._is_busy:
            return
        self._is_busy = True
        if len(self.connections) <= len(self._waiting):
            self._next_batch()  # Nobody else can come.
        else:
            asyncio.get_running_loop().call_soon(self._gather, 0)

    @property
    def refusal(self) -> Problem | None:
        """What callers hear now because nothing can be logged."""
        if self._answers_unlogged or (fault := self._log.unavailable_reason) is None:
            return None
        return log_problem(Unavailable(fault))

    def close(self) -> None:
        """Stop the thread for large requests."""
        self._pool.shutdown()

    def _next_batch(self) -> None:
        taken, self._waiting = self._waiting[:BATCH_REQUESTS], self._waiting[BATCH_REQUESTS:]
        shadowed = self._shadow_calls.take() if self._shadow_calls.rows else []
        if (fault := self._log.unavailable_reason) is not None:
            self._without_log(taken, Unavailable(fault))
            self._metrics.predictions.dropped.inc(len(shadowed))
            self._go_on()
            return
        began = time.perf_counter()
        marks = [taken[0].request.received_at if taken else began, began]
        batches = complete_batches(taken, self._challenger_calls.ready, marks)
        rows: list[Row] = []
        for batch in batches:
            rows += batch.rows
        if not (rows or shadowed) or self._log.try_commit([*rows, *shadowed] if shadowed else rows):
            if shadowed:
                self._shadow_calls.count(shadowed)
            self._acknowledge(batches, marks)
            self._go_on()
            return
        if shadowed:  # In a transaction of their own: what is wrong with them must not reach a caller.
            self._log.append(shadowed).add_done_callback(partial(self._shadow_calls.after, shadowed))
        if rows:
            self._commit_beside(batches, rows, marks)
        self._is_stalled = self._commits >= self._log.max_parallel_commits
        if not self._is_stalled:
            self._go_on()

    def _gather(self, before: int) -> None:
        """Begin the next batch once a turn of the loop brought nobody else, or nobody else can come.

        What has arrived at this machine is read in a turn, which takes microseconds: larger batches are worth it.
        """
        count = len(self._waiting)
        if before < count < min(BATCH_REQUESTS, len(self.connections)):
            asyncio.get_running_loop().call_soon(self._gather, count)
        else:
            self._next_batch()

    def _go_on(self) -> None:
        self._is_busy = bool(self._waiting or self._shadow_calls.rows)
        if self._is_busy:
            asyncio.get_running_loop().call_soon(self._gather, 0)

    def _come_back(self, waiting: list[Waiting]) -> None:
        self._waiting += waiting
        self._wake()

    def _wake(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._next_batch()

    def _commit_beside(self, batches: list[Batch], rows: list[Row], marks: Marks) -> None:
        loop = asyncio.get_running_loop()
        self._commits += 1
        self._log.append(rows).add_done_callback(
            lambda committed: loop.call_soon_threadsafe(self._after_commit, batches, committed, marks)
        )

    def _after_commit(self, batches: list[Batch], committed: "Future[None]", marks: Marks) -> None:
        self._commits -= 1
        if (error := committed.exception()) is None:
            self._acknowledge(batches, marks)
        elif isinstance(error, Unavailable):
            self._metrics.log.failures.inc()
            self._unacknowledged(batches, error)
        elif len(alone := [one for batch in batches for one in batch.split()]) > 1:
            for one in alone:  # Whose row it was shall hear of it, and nobody else.
                self._commit_beside([one], one.rows, [one.waiting[0].request.received_at, time.perf_counter()])
        else:
            self._metrics.log.failures.inc()
            waiting = alone[0].waiting[0]
            waiting.respond(log_problem(error, waiting.request.context))
        if self._is_stalled and self._commits < self._log.max_parallel_commits:
            self._is_stalled = False
            self._go_on()

    def _without_log(self, taken: list[Waiting], error: Unavailable) -> None:
        """It is known that nothing can be logged: nobody waits to find out again."""
        if self._answers_unlogged:
            self._unacknowledged(complete_batches(taken, self._challenger_calls.ready, []), error)
            return
        for one in taken:
            one.respond(log_problem(error, one.request.context))

    def _unacknowledged(self, batches: list[Batch], error: Unavailable) -> None:
        for batch in batches:
            for waiting, completed in zip(batch.waiting, batch.completed, strict=True):
                content = (
                    self._unlogged(completed) if self._answers_unlogged else log_problem(error, waiting.request.context)
                )
                waiting.respond(content)
            if self._answers_unlogged:
                self._count(batch.deployment, batch.completed)

    def _unlogged(self, completed: Completed) -> Unlogged:
        self._metrics.predictions.unlogged.inc(len(completed.classes) + len(completed.others))
        return Unlogged(completed.content)

    def _acknowledge(self, batches: list[Batch], marks: Marks) -> None:
        marks.append(time.perf_counter())
        for batch in batches:  # First, or a process that is killed in between would have told what nobody counted.
            self._count(batch.deployment, batch.completed)
        for batch in batches:
            for waiting, completed in zip(batch.waiting, batch.completed, strict=True):
                if (trace := waiting.request.context.trace) is not None:
                    trace.phases = durations(marks)
                waiting.respond(completed.content)
        marks.append(time.perf_counter())
        self._metrics.predictions.batch(marks)
        for batch in batches:
            if batch.deployment.shadow is not None:
                self._shadow_calls.ask(batch.deployment.shadow, batch.completed)

    def _count(self, deployment: Deployment, completed: Sequence[Completed]) -> None:
        model = deployment.model
        self._metrics.predictions.batches.inc()
        names: list[str] = []
        others: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
        for one in completed:
            names += one.classes
            for by, predicted in one.others:
                others[by.ref.version, by.variant, by.degraded].append(predicted.class_name)
        if names:
            self._metrics.predictions.predicted(model.ref.version, model.variant, names, model.degraded)
        for (version, variant, degraded), names in others.items():
            self._metrics.predictions.predicted(version, variant, names, degraded)

    def _complete_alone(self, deployment: Deployment, request: PredictRequest, marks: Marks) -> Completed:
        challenger = deployment.challenger
        if challenger is not None and not challenger.paused:
            request = self._challenger_calls.ask_and_wait(deployment.model, challenger, request)
        elif can_log_blocks(deployment):
            found = complete_block(deployment.model, request, marks)
            if isinstance(found, Completed):
                return found
            request = found
        (completed,) = complete(deployment.model, [request], marks)
        if isinstance(completed, Exception):
            raise completed
        return completed

    def _commit_alone(self, request: PredictRequest, complete: Callable[[Marks], Completed]) -> tuple[Completed, Marks]:
        if (refusal := self.refusal) is not None:
            raise refusal
        marks = [request.received_at, time.perf_counter()]
        completed = complete(marks)
        try:
            if not self._log.try_commit(completed.rows):
                self._log.append(completed.rows).result()
        except Exception as error:
            self._metrics.log.failures.inc()
            if self._answers_unlogged and isinstance(error, Unavailable):
                return completed._replace(content=self._unlogged(completed)), marks
            raise log_problem(error, request.context) from None
        marks.append(time.perf_counter())
        return completed, marks


def log_problem(error: BaseException, context: RequestContext = NO_REQUEST) -> Problem:
    """What a caller hears when nothing can be logged: no answer without a record. The server's log says why."""
    if not isinstance(error, Unavailable):  # Of an outage the log itself tells, once.
        # The driver's own words name the fault; SQLAlchemy's would repeat the row, which is the caller's.
        reason = error if isinstance(error, ProjectError) else getattr(error, "orig", type(error).__name__)
        logging.getLogger(__name__).error("prediction log: %s", reason, extra=context.fields)
    return Problem(
        503, "prediction-log-unavailable", "the prediction log takes no rows now; try again", {"Retry-After": "1"}
    )
