"""Dynamic batching of prediction requests: validate, score, commit, respond.

Requests that arrive while a batch is in progress form the next batch. One call of the model scores a batch, and one
transaction commits it. There is no timer, so a single request never waits for others. The steps before the commit are
in pipeline.py.

A request with rows for a challenger is set aside and joins a later batch (challenger_calls.py). A shadow scores rows
after their response was sent (shadow_calls.py).
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
from flywheel_ml.serving.observability.phases import Marks, compute_durations
from flywheel_ml.serving.observability.tracing import NO_CONTEXT, RequestContext
from flywheel_ml.serving.prediction.batch import Batch, PendingRequest, ResponseCallback, complete_batches
from flywheel_ml.serving.prediction.challenger_calls import ChallengerCalls
from flywheel_ml.serving.prediction.pipeline import can_log_blocks, complete, complete_block
from flywheel_ml.serving.prediction.requests import CompletedRequest, PredictRequest
from flywheel_ml.serving.prediction.shadow_calls import ShadowCalls
from flywheel_ml.utils.errors import ProjectError

MAX_INLINE_BODY_BYTES = 32_768
"""Larger bodies are processed on a separate thread, so that small requests do not wait for them."""
MAX_BATCH_REQUESTS = 128
"""Maximum requests in a batch; a full batch takes some milliseconds, and health checks wait no longer than that."""

UNLOGGED_HEADER = (b"x-prediction-logged", b"false")
"""Header of a response whose predictions were not logged."""


class UnloggedResponse(bytes):
    """A response that is sent although its predictions were not logged."""


class Batcher:
    """Answers prediction requests within one event loop; call `close` at the end.

    Args:
        log: every prediction is committed to it before the response is sent.
        metrics: counts predictions, batches and failures.
        challenger_timeout_seconds: timeout of a challenger's call.
        answers_unlogged: whether to respond, with an `UnloggedResponse`, while the log is unavailable.
    """

    def __init__(
        self, log: Writer, metrics: Metrics, challenger_timeout_seconds: float = 0.05, answers_unlogged: bool = False
    ) -> None:
        self._log = log
        self._answers_unlogged = answers_unlogged
        self._metrics = metrics
        self._challenger_calls = ChallengerCalls(metrics, challenger_timeout_seconds, self._requeue)
        self._shadow_calls = ShadowCalls(metrics, self._start_if_idle)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._pending: list[PendingRequest] = []
        self._is_busy = False
        self._is_at_commit_limit = False
        self._commits_in_flight = 0
        self.connections: Collection[object] = range(MAX_BATCH_REQUESTS)
        """Connections of clients; the server sets its own collection."""
        metrics.predictions.queued.set_function(lambda: len(self._pending))

    async def predict(self, deployment: Deployment, request: PredictRequest) -> bytes:
        """Return the response to a request after its rows were committed.

        Raises:
            Problem: 400 or 422 for the body, 503 if the log is unavailable.
        """
        if len(request.body) > MAX_INLINE_BODY_BYTES:
            return await self.predict_large(
                deployment, request, lambda marks: self._complete_large(deployment, request, marks)
            )
        response: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self.submit(deployment, request, lambda found: None if response.done() else response.set_result(found))
        found = await response
        if isinstance(found, Exception):
            raise found
        return found

    async def predict_large(
        self, deployment: Deployment, request: PredictRequest, complete_request: Callable[[Marks], CompletedRequest]
    ) -> bytes:
        """Return the response to a large request, completed and committed outside the event loop.

        Args:
            deployment: the model that answers, and its experiments.
            request: to be completed.
            complete_request: completes the request and adds the end of each phase to the marks.

        Raises:
            Problem: as `predict`.
            Exception: as `complete_request`.
        """
        loop = asyncio.get_running_loop()
        completed, marks = await loop.run_in_executor(self._pool, self._commit_large, request, complete_request)
        if request.context.trace is not None:
            request.context.trace.phases = compute_durations(marks)
        self._count(deployment, [completed])
        self._metrics.predictions.observe_batch(marks)
        if deployment.shadow is not None:
            self._shadow_calls.enqueue(deployment.shadow, [completed])
        return completed.body

    def submit(self, deployment: Deployment, request: PredictRequest, callback: ResponseCallback) -> None:
        """Like `predict`, for a body of at most `MAX_INLINE_BODY_BYTES`; `callback` gets the response or the error."""
        self._pending.append(PendingRequest(deployment, request, callback))
        if self._is_busy:
            return
        self._is_busy = True
        if len(self.connections) <= len(self._pending):
            self._next_batch()  # Every connection is already waiting.
        else:
            asyncio.get_running_loop().call_soon(self._collect_batch, 0)

    @property
    def outage_problem(self) -> Problem | None:
        """The problem for callers while the log is unavailable; None if requests are accepted."""
        if self._answers_unlogged or (reason := self._log.unavailable_reason) is None:
            return None
        return build_log_problem(Unavailable(reason))

    def close(self) -> None:
        """Stop the thread for large requests."""
        self._pool.shutdown()

    def _next_batch(self) -> None:
        taken, self._pending = self._pending[:MAX_BATCH_REQUESTS], self._pending[MAX_BATCH_REQUESTS:]
        shadowed = self._shadow_calls.drain() if self._shadow_calls.rows else []
        if (reason := self._log.unavailable_reason) is not None:
            self._answer_without_log(taken, Unavailable(reason))
            self._metrics.predictions.dropped.inc(len(shadowed))
            self._schedule_next()
            return
        began = time.perf_counter()
        marks = [taken[0].request.received_at if taken else began, began]
        batches = complete_batches(taken, self._challenger_calls.dispatch, marks)
        rows: list[Row] = []
        for batch in batches:
            rows += batch.rows
        if not (rows or shadowed) or self._log.try_commit([*rows, *shadowed] if shadowed else rows):
            if shadowed:
                self._shadow_calls.count(shadowed)
            self._acknowledge(batches, marks)
            self._schedule_next()
            return
        if shadowed:  # In a separate transaction, so that an error in a shadow's rows never reaches a caller.
            self._log.append(shadowed).add_done_callback(partial(self._shadow_calls.on_committed, shadowed))
        if rows:
            self._commit_in_background(batches, rows, marks)
        self._is_at_commit_limit = self._commits_in_flight >= self._log.max_parallel_commits
        if not self._is_at_commit_limit:
            self._schedule_next()

    def _collect_batch(self, before: int) -> None:
        """Start the next batch once an iteration of the loop added no request, or no other request can arrive.

        One iteration reads everything that has arrived and takes microseconds; the larger batches are worth it.
        """
        count = len(self._pending)
        if before < count < min(MAX_BATCH_REQUESTS, len(self.connections)):
            asyncio.get_running_loop().call_soon(self._collect_batch, count)
        else:
            self._next_batch()

    def _schedule_next(self) -> None:
        self._is_busy = bool(self._pending or self._shadow_calls.rows)
        if self._is_busy:
            asyncio.get_running_loop().call_soon(self._collect_batch, 0)

    def _requeue(self, requests: list[PendingRequest]) -> None:
        self._pending += requests
        self._start_if_idle()

    def _start_if_idle(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._next_batch()

    def _commit_in_background(self, batches: list[Batch], rows: list[Row], marks: Marks) -> None:
        loop = asyncio.get_running_loop()
        self._commits_in_flight += 1
        self._log.append(rows).add_done_callback(
            lambda committed: loop.call_soon_threadsafe(self._after_commit, batches, committed, marks)
        )

    def _after_commit(self, batches: list[Batch], committed: "Future[None]", marks: Marks) -> None:
        self._commits_in_flight -= 1
        if (error := committed.exception()) is None:
            self._acknowledge(batches, marks)
        elif isinstance(error, Unavailable):
            self._metrics.log.failures.inc()
            self._respond_uncommitted(batches, error)
        elif len(alone := [one for batch in batches for one in batch.split()]) > 1:
            for one in alone:  # Commit each request separately, so that only the one at fault gets the error.
                self._commit_in_background([one], one.rows, [one.pending[0].request.received_at, time.perf_counter()])
        else:
            self._metrics.log.failures.inc()
            pending = alone[0].pending[0]
            pending.respond(build_log_problem(error, pending.request.context))
        if self._is_at_commit_limit and self._commits_in_flight < self._log.max_parallel_commits:
            self._is_at_commit_limit = False
            self._schedule_next()

    def _answer_without_log(self, taken: list[PendingRequest], error: Unavailable) -> None:
        """Answer requests immediately while the log is known to be unavailable."""
        if self._answers_unlogged:
            self._respond_uncommitted(complete_batches(taken, self._challenger_calls.dispatch, []), error)
            return
        for one in taken:
            one.respond(build_log_problem(error, one.request.context))

    def _respond_uncommitted(self, batches: list[Batch], error: Unavailable) -> None:
        for batch in batches:
            for pending, completed in zip(batch.pending, batch.completed, strict=True):
                content = (
                    self._mark_unlogged(completed)
                    if self._answers_unlogged
                    else build_log_problem(error, pending.request.context)
                )
                pending.respond(content)
            if self._answers_unlogged:
                self._count(batch.deployment, batch.completed)

    def _mark_unlogged(self, completed: CompletedRequest) -> UnloggedResponse:
        self._metrics.predictions.unlogged.inc(len(completed.classes) + len(completed.other_predictions))
        return UnloggedResponse(completed.body)

    def _acknowledge(self, batches: list[Batch], marks: Marks) -> None:
        marks.append(time.perf_counter())
        for batch in batches:  # Before responding, so that a killed process never leaves an answered request uncounted.
            self._count(batch.deployment, batch.completed)
        for batch in batches:
            for pending, completed in zip(batch.pending, batch.completed, strict=True):
                if (trace := pending.request.context.trace) is not None:
                    trace.phases = compute_durations(marks)
                pending.respond(completed.body)
        marks.append(time.perf_counter())
        self._metrics.predictions.observe_batch(marks)
        for batch in batches:
            if batch.deployment.shadow is not None:
                self._shadow_calls.enqueue(batch.deployment.shadow, batch.completed)

    def _count(self, deployment: Deployment, completed: Sequence[CompletedRequest]) -> None:
        model = deployment.model
        self._metrics.predictions.batches.inc()
        class_names: list[str] = []
        other_class_names: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
        for one in completed:
            class_names += one.classes
            for other, predicted in one.other_predictions:
                other_class_names[other.ref.version, other.variant, other.degraded].append(predicted.class_name)
        if class_names:
            self._metrics.predictions.count_predictions(model.ref.version, model.variant, class_names, model.degraded)
        for (version, variant, degraded), class_names in other_class_names.items():
            self._metrics.predictions.count_predictions(version, variant, class_names, degraded)

    def _complete_large(self, deployment: Deployment, request: PredictRequest, marks: Marks) -> CompletedRequest:
        if deployment.challengers:
            request = self._challenger_calls.score_blocking(deployment, request)
        elif can_log_blocks(deployment):
            found = complete_block(deployment.model, request, marks)
            if isinstance(found, CompletedRequest):
                return found
            request = found
        (completed,) = complete(deployment.model, [request], marks)
        if isinstance(completed, Exception):
            raise completed
        return completed

    def _commit_large(
        self, request: PredictRequest, complete_request: Callable[[Marks], CompletedRequest]
    ) -> tuple[CompletedRequest, Marks]:
        if (problem := self.outage_problem) is not None:
            raise problem
        marks = [request.received_at, time.perf_counter()]
        completed = complete_request(marks)
        try:
            if not self._log.try_commit(completed.rows):
                self._log.append(completed.rows).result()
        except Exception as error:
            self._metrics.log.failures.inc()
            if self._answers_unlogged and isinstance(error, Unavailable):
                return completed._replace(body=self._mark_unlogged(completed)), marks
            raise build_log_problem(error, request.context) from None
        marks.append(time.perf_counter())
        return completed, marks


def build_log_problem(error: BaseException, context: RequestContext = NO_CONTEXT) -> Problem:
    """Log why a commit failed, and return the 503 for the caller."""
    if not isinstance(error, Unavailable):  # The prediction log reports an outage itself, once.
        # The driver's message names the error; SQLAlchemy's would also contain the row, which is the caller's data.
        reason = error if isinstance(error, ProjectError) else getattr(error, "orig", type(error).__name__)
        logging.getLogger(__name__).error("prediction log: %s", reason, extra=context.fields)
    return Problem(
        503, "prediction-log-unavailable", "the prediction log is unavailable; try again", {"Retry-After": "1"}
    )
