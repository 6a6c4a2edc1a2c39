"""The hot path: bodies in, committed rows and answers out.

What came in while the last batch was worked on is the next batch: checked, scored by one call of the model,
committed by one transaction, answered. There is no timer, so a lone request waits for nobody. What is done for each
batch before the commit is in phases.py.

A request with rows for a challenger stands aside until that has answered them on its own thread, or failed to, and
joins a later batch; nobody else waits. A shadow is asked once the answer is on its way.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import NamedTuple

from ..errors import ProjectError
from ..prediction_log import Prediction, Row, Unavailable, Writer, new_ids
from .live import Live
from .phases import OWN, Asked, Form, Told, Work, attempt, shadow_rows, work
from .problems import Problem
from .series import Laps, Metrics
from .tracing import NOBODY, Origin
from .trial import BUSY, CHUNK, MOST_ROWS, NO_NUMBER, NO_WISH, RAISED, SLOW, Trial, Wish

INLINE_BYTES = 32_768
"""A larger body is worked on beside the event loop, so that others need not wait for it."""
BATCH_REQUESTS = 128
"""Most requests in a batch: so many take some milliseconds, and health checks wait no longer."""

UNLOGGED = (b"x-prediction-logged", b"false")
"""The header of an answer whose predictions are in no log."""

Done = Callable[[bytes | Exception], None]


class Unlogged(bytes):
    """An answer that was sent although nothing could be logged."""


class _Waiting(NamedTuple):
    live: Live
    asked: Asked
    done: Done

    def tell(self, found: bytes | Exception) -> None:
        """Whatever is wrong with one connection, the others are told too, and the next batch comes."""
        try:
            self.done(found)
        except Exception:
            logging.getLogger(__name__).exception("an answer could not be handed on", extra=self.asked.origin.fields)


class _Batch(NamedTuple):
    live: Live
    waiting: list[_Waiting]
    works: list[Work]

    def split(self) -> "list[_Batch]":
        pairs = zip(self.waiting, self.works, strict=True)
        return [_Batch(self.live, [waiting], [work]) for waiting, work in pairs]


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
        self._challenger_seconds = challenger_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._waiting: list[_Waiting] = []
        self._shadowed: list[Prediction] = []
        self._is_busy = False
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
        self._ask_shadow(live, [done])
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
        self._waiting.append(_Waiting(live, Asked(body, time.perf_counter(), form or OWN, wish, origin), done))
        if self._is_busy:
            return
        self._is_busy = True
        if self.connections() <= len(self._waiting):
            self._next_batch()  # Nobody else can come.
        else:  # After whatever else arrives in this turn of the loop.
            asyncio.get_running_loop().call_soon(self._next_batch)

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
        shadowed, self._shadowed = self._shadowed, []
        if (fault := self._log.fault) is not None:
            self._without_log(taken, Unavailable(fault))
            self._metrics.dropped.inc(len(shadowed))
            self._go_on()
            return
        laps = Laps(taken[0].asked.at if taken else time.perf_counter())
        batches = [_worked(live, self._not_aside(live, some), laps) for live, some in _by_model(taken)]
        started = time.perf_counter()
        rows = _rows(batches)
        if not (rows or shadowed) or self._log.commit([*rows, *shadowed] if shadowed else rows):
            self._metrics.log_seconds.observe(time.perf_counter() - started)
            self._count_shadowed(shadowed)
            self._acknowledge(batches, laps)
            self._go_on()
            return
        if shadowed:  # In a transaction of their own: what is wrong with them must not reach a caller.
            self._log.append(shadowed).add_done_callback(partial(self._after_shadowed, shadowed))
        if rows:
            self._commit_beside(batches, rows, laps)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._is_busy = bool(self._waiting or self._shadowed)
        if self._is_busy:
            asyncio.get_running_loop().call_soon(self._next_batch)

    def _wake(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._next_batch()

    def _commit_beside(self, batches: list[_Batch], rows: list[Row], laps: Laps) -> None:
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        self._commits += 1
        self._log.append(rows).add_done_callback(
            lambda committed: loop.call_soon_threadsafe(self._after_commit, batches, committed, started, laps)
        )

    def _after_commit(self, batches: list[_Batch], committed: "Future[None]", started: float, laps: Laps) -> None:
        self._commits -= 1
        self._metrics.log_seconds.observe(time.perf_counter() - started)
        if (error := committed.exception()) is None:
            self._acknowledge(batches, laps)
        elif isinstance(error, Unavailable):
            self._metrics.log_failures.inc()
            self._unacknowledged(batches, error)
        elif len(alone := [one for batch in batches for one in batch.split()]) > 1:
            for one in alone:  # Whose row it was shall hear of it, and nobody else.
                self._commit_beside([one], _rows([one]), Laps(one.waiting[0].asked.at))
        else:
            self._metrics.log_failures.inc()
            waiting = alone[0].waiting[0]
            waiting.tell(log_problem(error, waiting.asked.origin))
        if not self._commits:
            self._go_on()

    def _without_log(self, taken: list[_Waiting], error: Unavailable) -> None:
        """It is known that nothing can be logged: nobody waits to find out again."""
        if self._degrades:
            laps = Laps(0.0)
            batches = [_worked(live, self._not_aside(live, some), laps) for live, some in _by_model(taken)]
            self._unacknowledged(batches, error)
            return
        for one in taken:
            one.tell(log_problem(error, one.asked.origin))

    def _unacknowledged(self, batches: list[_Batch], error: Unavailable) -> None:
        for batch in batches:
            for waiting, done in zip(batch.waiting, batch.works, strict=True):
                waiting.tell(self._unlogged(done) if self._degrades else log_problem(error, waiting.asked.origin))
            if self._degrades:
                self._count(batch.live, batch.works)

    def _unlogged(self, done: Work) -> Unlogged:
        self._metrics.unlogged.inc(len(done.classes) + len(done.others))
        return Unlogged(done.answer)

    def _acknowledge(self, batches: list[_Batch], laps: Laps) -> None:
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
            self._ask_shadow(batch.live, batch.works)

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
            asked = self._ask_and_wait(live, live.challenger, asked)
        return _only(work(live, [asked], laps))

    def _made(self, make: Callable[[Laps], Work], since: float, origin: Origin) -> tuple[Work, Laps]:
        if (refusal := self.refusal) is not None:
            raise refusal
        laps = Laps(since)
        done = make(laps)
        with self._metrics.log_seconds.time():
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

    def _not_aside(self, live: Live, waiting: list[_Waiting]) -> list[_Waiting]:
        """Those that can be answered now; the others come back when the challenger has answered, or failed to."""
        trial = live.challenger
        if trial is None or trial.paused:
            return waiting
        now: list[_Waiting] = []
        aside: list[tuple[_Waiting, list[int]]] = []
        for one in waiting:
            if one.asked.ids is not None:
                now.append(one)  # It has come back.
                continue
            try:
                asked, chosen = _for(live, trial, one.asked)
            except Exception as problem:
                one.tell(problem)
                continue
            one = one._replace(asked=asked)  # noqa: PLW2901
            if chosen and not trial.is_stuck:
                aside.append((one, chosen))
            else:
                self._metrics.replaced.labels(BUSY).inc(len(chosen))
                now.append(one)
        if aside:
            trial.pending += aside
            if not trial.is_asked:
                self._ask_challenger(trial)
        return now

    def _ask_challenger(self, trial: Trial) -> None:
        """Hand over the rows that are pending, all in one call."""
        aside: list[tuple[_Waiting, list[int]]] = trial.pending
        trial.pending = []
        instances = [(one.asked.instances or [])[at] for one, chosen in aside for at in chosen]
        call = _Call(trial, aside, len(instances))
        asked = trial.submit(len(instances), lambda: attempt(trial.live, instances))
        if asked is None:
            self._failed(trial, BUSY, call.rows)
            self._come_back(call, [None] * call.rows)
            return
        trial.is_asked = True
        loop = asyncio.get_running_loop()
        seconds = trial.patience(self._challenger_seconds)
        call.timer = loop.call_later(seconds, self._late, call, seconds)
        asked.add_done_callback(partial(_post, loop, self._challenged, call))

    def _late(self, call: "_Call", seconds: float) -> None:
        # One that never returns is counted again and again, or its breaker would never open.
        trial = call.trial
        trial.is_stuck = True
        self._failed(trial, SLOW, 0 if call.is_settled else call.rows)
        if not trial.paused:
            call.timer = asyncio.get_running_loop().call_later(seconds, self._late, call, seconds)
        if not call.is_settled:
            self._come_back(call, [None] * call.rows)
        if trial.pending:
            others = _Call(trial, trial.pending, sum(len(chosen) for _, chosen in trial.pending))
            trial.pending = []
            self._metrics.replaced.labels(BUSY).inc(others.rows)
            self._come_back(others, [None] * others.rows)

    def _challenged(self, call: "_Call", asked: "Future[list[Told | None]]") -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.trial.is_stuck = call.trial.is_asked = False
        if call.trial.pending:
            self._ask_challenger(call.trial)
        if not call.is_settled:
            self._come_back(call, self._judged(call.trial, asked, call.rows))

    def _judged(self, trial: Trial, asked: "Future[list[Told | None]]", rows: int) -> Sequence[Told | None]:
        """What the challenger answered, its breaker told how that went."""
        if asked.exception() is not None:
            self._failed(trial, RAISED, rows)
            return [None] * rows
        found = asked.result()
        if lacking := found.count(None):
            self._failed(trial, NO_NUMBER, lacking)
        else:
            trial.note(None)
        return found

    def _failed(self, trial: Trial, reason: str, rows: int) -> None:
        self._metrics.replaced.labels(reason).inc(rows)
        trial.note(reason)

    def _come_back(self, call: "_Call", found: Sequence[Told | None]) -> None:
        call.is_settled = True
        answers = iter(found)
        for one, chosen in call.aside:
            given = {at: (call.trial.live, told) for at in chosen if (told := next(answers)) is not None}
            self._waiting.append(one._replace(asked=one.asked._replace(given=given)))
        self._wake()

    def _ask_and_wait(self, live: Live, trial: Trial, asked: Asked) -> Asked:
        """As `_not_aside`, for a large request beside the event loop."""
        asked, chosen = _for(live, trial, asked)
        given: dict[int, tuple[Live, Told]] = {}
        instances = asked.instances or []
        for some in (chosen[at : at + CHUNK] for at in range(0, len(chosen), CHUNK)):
            rows = [instances[at] for at in some]
            call = None
            if not (trial.paused or trial.is_stuck):
                call = trial.submit(len(rows), partial(attempt, trial.live, rows))
            if call is None:
                self._metrics.replaced.labels(BUSY).inc(len(rows))
                continue
            try:
                call.exception(trial.patience(self._challenger_seconds))
            except TimeoutError:
                self._failed(trial, SLOW, len(rows))
                trial.is_stuck = True
                call.add_done_callback(lambda _: setattr(trial, "is_stuck", False))
                continue
            found = self._judged(trial, call, len(rows))
            given |= {at: (trial.live, told) for at, told in zip(some, found, strict=True) if told is not None}
        return asked._replace(given=given)

    def _ask_shadow(self, live: Live, works: Sequence[Work]) -> None:
        trial = live.shadow
        if trial is None or trial.paused:
            return
        pairs = [
            (instance, row)
            for work in works
            for instance, row in zip(work.instances, work.rows, strict=True)
            if isinstance(row, Prediction)
        ]
        room = max(0, MOST_ROWS - len(trial.pending))
        trial.pending += pairs[:room]
        self._metrics.dropped.inc(len(pairs[room:]))
        if not trial.is_asked:
            self._next_shadow(trial)

    def _next_shadow(self, trial: Trial) -> None:
        some, trial.pending = trial.pending[:CHUNK], trial.pending[CHUNK:]
        asked = trial.submit(len(some), partial(shadow_rows, trial.live, some))
        if asked is None:  # It is no longer in service.
            self._drop(trial, len(some))
            return
        trial.is_asked = True
        asked.add_done_callback(partial(_post, asyncio.get_running_loop(), self._keep, trial, len(some)))

    def _keep(self, trial: Trial, rows: int, asked: "Future[list[Prediction]]") -> None:
        """Take what the shadow said into the next transaction."""
        found = [] if asked.exception() else asked.result()
        trial.note(None if len(found) == rows else RAISED if asked.exception() else NO_NUMBER)
        self._metrics.dropped.inc(rows - len(found))
        trial.is_asked = False
        if trial.paused:
            self._drop(trial)
        if trial.pending:
            self._next_shadow(trial)
        self._shadowed += found
        if found:
            self._wake()

    def _drop(self, trial: Trial, more: int = 0) -> None:
        self._metrics.dropped.inc(len(trial.pending) + more)
        trial.pending = []

    def _after_shadowed(self, rows: Sequence[Prediction], committed: "Future[None]") -> None:
        if committed.exception() is None:
            self._count_shadowed(rows)
        else:
            self._metrics.dropped.inc(len(rows))

    def _count_shadowed(self, rows: Sequence[Prediction]) -> None:
        for version, some in groupby(rows, key=lambda row: row.model_version):
            self._metrics.predicted(version, "shadow", ["" for _ in some], degraded=False)


class _Call:
    """Rows that a challenger was asked for, and the requests that stand aside for them."""

    def __init__(self, trial: Trial, aside: list[tuple[_Waiting, list[int]]], rows: int) -> None:
        self.trial = trial
        self.aside = aside
        self.rows = rows
        self.timer: asyncio.TimerHandle | None = None
        self.is_settled = False


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Have a function called in the loop, from any thread; not at all once the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _by_model(waiting: Sequence[_Waiting]) -> list[tuple[Live, list[_Waiting]]]:
    groups = (list(some) for _, some in groupby(waiting, key=lambda one: id(one.live)))
    return [(some[0].live, some) for some in groups]


def _for(live: Live, trial: Trial, asked: Asked) -> tuple[Asked, list[int]]:
    """A checked request, and the places of its rows that go to the challenger; raises as `Form.read`."""
    instances = asked.form.read(live, asked.body)
    ids = new_ids(len(instances))
    return asked._replace(instances=instances, ids=ids), trial.chosen(live.key, instances, ids, asked.wish)


def _worked(live: Live, waiting: list[_Waiting], laps: Laps) -> _Batch:
    """Those of the requests, all for one model, that can be answered; the others hear why not."""
    try:
        found = work(live, [one.asked for one in waiting], laps)
    except Exception as error:
        found = [error] * len(waiting)
    good = _Batch(live, [], [])
    for one, done in zip(waiting, found, strict=True):
        if isinstance(done, Work):
            good.waiting.append(one)
            good.works.append(done)
        else:
            one.tell(done)
    return good


def _rows(batches: Sequence[_Batch]) -> list[Row]:
    return [row for batch in batches for work in batch.works for row in work.rows]


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
