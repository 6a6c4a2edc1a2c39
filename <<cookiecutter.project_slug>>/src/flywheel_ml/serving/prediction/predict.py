"""The hot path: bodies in, committed rows and answers out.

What came in while the last batch was worked on is the next batch: checked, scored by one call of the model,
committed by one transaction, answered. There is no timer, so a lone request waits for nobody. What is done for each
batch before the commit is in phases.py.

A request with rows for a challenger stands aside meanwhile and joins a later batch (challenger.py); a shadow is asked
once the answer is on its way (shadow.py).
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from flywheel_ml.prediction_log import Row, Unavailable, Writer
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.experiments.trial import NO_WISH, Wish
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Laps, Metrics
from flywheel_ml.serving.observability.tracing import NOBODY, Origin
from flywheel_ml.serving.prediction import block
from flywheel_ml.serving.prediction.batches import Batch, Done, Waiting, by_model, worked
from flywheel_ml.serving.prediction.challenger import Challenged
from flywheel_ml.serving.prediction.phases import OWN, Asked, Form, Work, work
from flywheel_ml.serving.prediction.shadow import Shadowed
from flywheel_ml.utils.errors import ProjectError

INLINE_BYTES = 32_768
"""A larger body is worked on beside the event loop, so that others need not wait for it."""
BATCH_REQUESTS = 128
"""Most requests in a batch: so many take some milliseconds, and health checks wait no longer."""

UNLOGGED = (b"x-prediction-logged", b"false")
"""The header of an answer whose predictions are in no log."""


class Unlogged(bytes):
    """An answer that was sent although nothing could be logged."""


class Predictor:
    """Answers prediction requests, within one event loop; `close` when done.

    Args:
        log: where every prediction is committed before it is acknowledged.
        metrics: where it is counted.
        degrades: whether answers are sent, as `Unlogged`, while the log takes nothing.
    """

    def __init__(self, log: Writer, metrics: Metrics, challenger_seconds: float = 0.05, degrades: bool = False) -> None:
        self._log = log
        self._degrades = degrades
        self._metrics = metrics
        self._challenged = Challenged(metrics, challenger_seconds, self._come_back)
        self._shadowed = Shadowed(metrics, self._wake)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._waiting: list[Waiting] = []
        self._is_busy = False
        self._is_stalled = False
        self._commits = 0
        self.connections: Callable[[], int] = lambda: BATCH_REQUESTS
        """How many clients there are; a server replaces it by what it knows."""
        metrics.queued.set_function(lambda: len(self._waiting))

    async def predict(
        self, live: Live, body: bytes, form: Form | None = None, wish: Wish = NO_WISH, origin: Origin = NOBODY
    ) -> bytes:
        """The answer to a body, after its rows were committed.

        Raises:
            Problem: 400 or 422 for the body; 503 when the log takes nothing.
        """
        if len(body) > INLINE_BYTES:
            asked = Asked(body, time.perf_counter(), form or OWN, wish, origin)
            return await self.alone(live, lambda laps: self._work_alone(live, asked, laps), asked.at, origin)
        answer: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self.submit(live, body, lambda found: None if answer.done() else answer.set_result(found), form, wish, origin)
        found = await answer
        if isinstance(found, Exception):
            raise found
        return found

    async def alone(self, live: Live, make: Callable[[Laps], Work], since: float, origin: Origin = NOBODY) -> bytes:
        """The answer to one large request, made and committed beside the event loop; raises as `predict` and `make`.

        Args:
            live: the model.
            make: works on it, and notes its phases.
            since: when it came (`time.perf_counter`).
            origin: who it is.
        """
        done, laps = await asyncio.get_running_loop().run_in_executor(self._pool, self._made, make, since, origin)
        if origin.trace is not None:
            origin.trace.laps = laps
        self._count(live, [done])
        self._metrics.batch(laps)
        self._shadowed.ask(live, [done])
        return done.answer

    def submit(
        self,
        live: Live,
        body: bytes,
        done: Done,
        form: Form | None = None,
        wish: Wish = NO_WISH,
        origin: Origin = NOBODY,
    ) -> None:
        """Like `predict` for a body of at most `INLINE_BYTES`; `done` is called with the answer or the error."""
        self._waiting.append(Waiting(live, Asked(body, time.perf_counter(), form or OWN, wish, origin), done))
        if self._is_busy:
            return
        self._is_busy = True
        if self.connections() <= len(self._waiting):
            self._next_batch()  # Nobody else can come.
        else:
            asyncio.get_running_loop().call_soon(self._gather, 0)

    @property
    def refusal(self) -> Problem | None:
        """What callers hear now because nothing can be logged."""
        if self._degrades or (fault := self._log.fault) is None:
            return None
        return log_problem(Unavailable(fault))

    def close(self) -> None:
        """Stop the thread for large requests."""
        self._pool.shutdown()

    def _next_batch(self) -> None:
        taken, self._waiting = self._waiting[:BATCH_REQUESTS], self._waiting[BATCH_REQUESTS:]
        shadowed = self._shadowed.take()
        if (fault := self._log.fault) is not None:
            self._without_log(taken, Unavailable(fault))
            self._metrics.dropped.inc(len(shadowed))
            self._go_on()
            return
        laps = Laps(taken[0].asked.at if taken else time.perf_counter())
        batches = [worked(live, self._challenged.not_aside(live, some), laps) for live, some in by_model(taken)]
        rows = [row for batch in batches for row in batch.rows]
        if not (rows or shadowed) or self._log.commit([*rows, *shadowed] if shadowed else rows):
            self._shadowed.count(shadowed)
            self._acknowledge(batches, laps)
            self._go_on()
            return
        if shadowed:  # In a transaction of their own: what is wrong with them must not reach a caller.
            self._log.append(shadowed).add_done_callback(partial(self._shadowed.after, shadowed))
        if rows:
            self._commit_beside(batches, rows, laps)
        self._is_stalled = self._commits >= self._log.lanes
        if not self._is_stalled:
            self._go_on()

    def _gather(self, before: int) -> None:
        """Begin the next batch once a turn of the loop brought nobody else, or nobody else can come.

        What has arrived at this machine is read in a turn, which takes microseconds: larger batches are worth it.
        """
        count = len(self._waiting)
        if before < count < min(BATCH_REQUESTS, self.connections()):
            asyncio.get_running_loop().call_soon(self._gather, count)
        else:
            self._next_batch()

    def _go_on(self) -> None:
        self._is_busy = bool(self._waiting or self._shadowed)
        if self._is_busy:
            asyncio.get_running_loop().call_soon(self._gather, 0)

    def _come_back(self, waiting: list[Waiting]) -> None:
        self._waiting += waiting
        self._wake()

    def _wake(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._next_batch()

    def _commit_beside(self, batches: list[Batch], rows: list[Row], laps: Laps) -> None:
        loop = asyncio.get_running_loop()
        self._commits += 1
        self._log.append(rows).add_done_callback(
            lambda committed: loop.call_soon_threadsafe(self._after_commit, batches, committed, laps)
        )

    def _after_commit(self, batches: list[Batch], committed: "Future[None]", laps: Laps) -> None:
        self._commits -= 1
        if (error := committed.exception()) is None:
            self._acknowledge(batches, laps)
        elif isinstance(error, Unavailable):
            self._metrics.log_failures.inc()
            self._unacknowledged(batches, error)
        elif len(alone := [one for batch in batches for one in batch.split()]) > 1:
            for one in alone:  # Whose row it was shall hear of it, and nobody else.
                self._commit_beside([one], one.rows, Laps(one.waiting[0].asked.at))
        else:
            self._metrics.log_failures.inc()
            waiting = alone[0].waiting[0]
            waiting.tell(log_problem(error, waiting.asked.origin))
        if self._is_stalled and self._commits < self._log.lanes:
            self._is_stalled = False
            self._go_on()

    def _without_log(self, taken: list[Waiting], error: Unavailable) -> None:
        """It is known that nothing can be logged: nobody waits to find out again."""
        if self._degrades:
            laps = Laps(0.0)
            batches = [worked(live, self._challenged.not_aside(live, some), laps) for live, some in by_model(taken)]
            self._unacknowledged(batches, error)
            return
        for one in taken:
            one.tell(log_problem(error, one.asked.origin))

    def _unacknowledged(self, batches: list[Batch], error: Unavailable) -> None:
        for batch in batches:
            for waiting, done in zip(batch.waiting, batch.works, strict=True):
                waiting.tell(self._unlogged(done) if self._degrades else log_problem(error, waiting.asked.origin))
            if self._degrades:
                self._count(batch.live, batch.works)

    def _unlogged(self, done: Work) -> Unlogged:
        self._metrics.unlogged.inc(len(done.classes) + len(done.others))
        return Unlogged(done.answer)

    def _acknowledge(self, batches: list[Batch], laps: Laps) -> None:
        laps.lap("commit")
        for batch in batches:  # First, or a process that is killed in between would have told what nobody counted.
            self._count(batch.live, batch.works)
        for batch in batches:
            for waiting, done in zip(batch.waiting, batch.works, strict=True):
                if waiting.asked.origin.trace is not None:
                    waiting.asked.origin.trace.laps = laps
                waiting.tell(done.answer)
        laps.lap("answer")
        self._metrics.batch(laps)
        for batch in batches:
            self._shadowed.ask(batch.live, batch.works)

    def _count(self, live: Live, works: Sequence[Work]) -> None:
        self._metrics.batches.inc()
        if names := [name for work in works for name in work.classes]:
            self._metrics.predicted(live.ref.version, live.variant, names, live.degraded)
        others: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
        for by, told in (other for done in works for other in done.others):
            others[by.ref.version, by.variant, by.degraded].append(told.name)
        for (version, variant, degraded), names in others.items():
            self._metrics.predicted(version, variant, names, degraded)

    def _work_alone(self, live: Live, asked: Asked, laps: Laps) -> Work:
        if live.challenger is not None and not live.challenger.paused:
            asked = self._challenged.ask_and_wait(live, live.challenger, asked)
        elif block.is_for(live):
            found = block.work(live, asked, laps)
            if isinstance(found, Work):
                return found
            asked = found
        return _only(work(live, [asked], laps))

    def _made(self, make: Callable[[Laps], Work], since: float, origin: Origin) -> tuple[Work, Laps]:
        if (refusal := self.refusal) is not None:
            raise refusal
        laps = Laps(since)
        done = make(laps)
        try:
            if not self._log.commit(done.rows):
                self._log.append(done.rows).result()
        except Exception as error:
            self._metrics.log_failures.inc()
            if self._degrades and isinstance(error, Unavailable):
                return done._replace(answer=self._unlogged(done)), laps
            raise log_problem(error, origin) from None
        laps.lap("commit")
        return done, laps


def _only(found: Sequence[Work | Exception]) -> Work:
    (done,) = found
    if isinstance(done, Exception):
        raise done
    return done


def log_problem(error: BaseException, origin: Origin = NOBODY) -> Problem:
    """What a caller hears when nothing can be logged: no answer without a record. The server's log says why."""
    if not isinstance(error, Unavailable):  # Of an outage the log itself tells, once.
        # The driver's own words name the fault; SQLAlchemy's would repeat the row, which is the caller's.
        reason = error if isinstance(error, ProjectError) else getattr(error, "orig", type(error).__name__)
        logging.getLogger(__name__).error("prediction log: %s", reason, extra=origin.fields)
    return Problem(
        503, "prediction-log-unavailable", "the prediction log takes no rows now; try again", {"Retry-After": "1"}
    )
