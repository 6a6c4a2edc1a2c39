"""The hot path: bodies in, committed rows and answers out.

What came in while the last batch was worked on is the next batch: checked, scored by one call of the model,
committed by one transaction, answered. There is no timer, so a lone request waits for nobody. The phases are
functions of their own: `Schema.instances` checks, `score` asks the model, `outputs` and `rows` say what is told
and logged, `answer` writes.

A request with rows for a challenger stands aside until that has answered them on its own thread, or failed to, and
joins a later batch; nobody else waits. A shadow is asked once the answer is on its way.
"""

import asyncio
import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic_core import to_json

from ..bundle import Predictions
from ..contract import from_rows
from ..errors import ProjectError
from ..prediction_log import Prediction, Row, Writer, dumps, new_ids, now_us
from .live import Live, name_of
from .problems import Problem
from .telemetry import Metrics
from .trial import BUSY, CHUNK, MOST_ROWS, NO_NUMBER, NO_WISH, RAISED, SLOW, Trial, Wish

INLINE_BYTES = 32_768
"""A larger body is worked on beside the event loop, so that others need not wait for it."""
BATCH_REQUESTS = 128
"""Most requests in a batch: so many take some milliseconds, and health checks wait no longer."""

Instance = Mapping[str, Any]
Done = Callable[[bytes | Exception], None]


class Form(Protocol):
    """How a protocol writes what all of them say; made anew for a request if it has to remember something of it."""

    def read(self, live: Live, body: bytes) -> list[dict[str, Any]]:
        """The instances of a body, checked by the contract; raises `Problem` where they are not as agreed."""
        ...

    def write(self, live: Live, logged: Sequence[Prediction]) -> bytes:
        """The body of the answer, sent once these rows are committed."""
        ...


class Told(NamedTuple):
    """One row's answer: a JSON object, the class as metrics name it, the score."""

    output: str
    name: str
    score: float


class Asked(NamedTuple):
    """A request's body, when it came (`time.perf_counter`), the protocol it is written in, and what its headers wish.

    `instances` is there once the body has been checked, `ids` of their predictions once it is clear who answers which;
    `given` has the rows that are answered already, by another model: place → model and answer.
    """

    body: bytes
    at: float
    form: Form
    wish: Wish = NO_WISH
    instances: list[dict[str, Any]] | None = None
    ids: Sequence[str] | None = None
    given: Mapping[int, tuple[Live, Told]] = {}


class Work(NamedTuple):
    """What one request came to: rows for the log, and the answer that may be sent once they are committed.

    `classes` are those of the rows that the batch answered; `others` has what was given beside it.
    """

    rows: Sequence[Row]
    answer: bytes
    classes: list[str]
    instances: Sequence[Instance] = ()
    others: Sequence[tuple[Live, Told]] = ()


class _Waiting(NamedTuple):
    live: Live
    asked: Asked
    done: Done

    def tell(self, found: bytes | Exception) -> None:
        """Whatever is wrong with one connection, the others are told too, and the next batch comes."""
        try:
            self.done(found)
        except Exception:
            logging.getLogger(__name__).exception("an answer could not be handed on")


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
    """

    def __init__(self, log: Writer, metrics: Metrics, challenger_seconds: float = 0.05) -> None:
        self._log = log
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

    async def predict(self, live: Live, body: bytes, form: Form | None = None, wish: Wish = NO_WISH) -> bytes:
        """The answer to a body, after its rows were committed.

        Raises:
            Problem: 400 or 422 for the body; 503 when the log takes nothing.
        """
        if len(body) > INLINE_BYTES:
            asked = Asked(body, time.perf_counter(), form or OWN, wish)
            return await self.alone(live, lambda: self._work_alone(live, asked))
        answer: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self.submit(live, body, lambda found: None if answer.done() else answer.set_result(found), form, wish)
        found = await answer
        if isinstance(found, Exception):
            raise found
        return found

    async def alone(self, live: Live, make: Callable[[], Work]) -> bytes:
        """The answer to one large request, made and committed beside the event loop; raises as `predict` and `make`."""
        done = await asyncio.get_running_loop().run_in_executor(self._pool, self._made, make)
        self._told(live, [done])
        return done.answer

    def submit(self, live: Live, body: bytes, done: Done, form: Form | None = None, wish: Wish = NO_WISH) -> None:
        """Like `predict` for a body of at most `INLINE_BYTES`; `done` is called with the answer or the error."""
        self._waiting.append(_Waiting(live, Asked(body, time.perf_counter(), form or OWN, wish), done))
        if self._is_busy:
            return
        self._is_busy = True
        if self.connections() <= len(self._waiting):
            self._next_batch()  # Nobody else can come.
        else:  # After whatever else arrives in this turn of the loop.
            asyncio.get_running_loop().call_soon(self._next_batch)

    def close(self) -> None:
        """Stop the thread for large requests."""
        self._pool.shutdown()

    def _next_batch(self) -> None:
        taken, self._waiting = self._waiting[:BATCH_REQUESTS], self._waiting[BATCH_REQUESTS:]
        batches = [_worked(live, self._not_aside(live, some)) for live, some in _by_model(taken)]
        shadowed, self._shadowed = self._shadowed, []
        started = time.perf_counter()
        rows = _rows(batches)
        if not (rows or shadowed) or self._log.commit([*rows, *shadowed] if shadowed else rows):
            self._metrics.log_seconds.observe(time.perf_counter() - started)
            self._count_shadowed(shadowed)
            self._acknowledge(batches)
            self._go_on()
            return
        if shadowed:  # In a transaction of their own: what is wrong with them must not reach a caller.
            self._log.append(shadowed).add_done_callback(partial(self._after_shadowed, shadowed))
        if rows:
            self._commit_beside(batches, rows)
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

    def _commit_beside(self, batches: list[_Batch], rows: list[Row]) -> None:
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        self._commits += 1
        self._log.append(rows).add_done_callback(
            lambda committed: loop.call_soon_threadsafe(self._after_commit, batches, committed, started)
        )

    def _after_commit(self, batches: list[_Batch], committed: "Future[None]", started: float) -> None:
        self._commits -= 1
        self._metrics.log_seconds.observe(time.perf_counter() - started)
        if (error := committed.exception()) is None:
            self._acknowledge(batches)
        elif len(alone := [one for batch in batches for one in batch.split()]) > 1:
            for one in alone:  # Whose row it was shall hear of it, and nobody else.
                self._commit_beside([one], _rows([one]))
        else:
            self._metrics.log_failures.inc()
            alone[0].waiting[0].tell(log_problem(error))
        if not self._commits:
            self._go_on()

    def _acknowledge(self, batches: list[_Batch]) -> None:
        for batch in batches:
            for waiting, work in zip(batch.waiting, batch.works, strict=True):
                waiting.tell(work.answer)
            self._told(batch.live, batch.works)

    def _told(self, live: Live, works: Sequence[Work]) -> None:
        """What remains once the answers are on their way: count, and ask the shadow."""
        self._metrics.batches.inc()
        if names := [name for work in works for name in work.classes]:
            self._metrics.predicted(live.ref.version, live.variant, names, live.degraded)
        others: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
        for by, told in (other for work in works for other in work.others):
            others[by.ref.version, by.variant, by.degraded].append(told.name)
        for (version, variant, degraded), names in others.items():
            self._metrics.predicted(version, variant, names, degraded)
        if live.shadow is not None and not live.shadow.paused:
            self._ask_shadow(live.shadow, works)

    def _work_alone(self, live: Live, asked: Asked) -> Work:
        if live.challenger is not None and not live.challenger.paused:
            asked = self._ask_and_wait(live, live.challenger, asked)
        return _only(work(live, [asked]))

    def _made(self, make: Callable[[], Work]) -> Work:
        done = make()
        with self._metrics.log_seconds.time():
            try:
                if not self._log.commit(done.rows):
                    self._log.append(done.rows).result()
            except Exception as error:
                self._metrics.log_failures.inc()
                raise log_problem(error) from None
        return done

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

    def _ask_shadow(self, trial: Trial, works: Sequence[Work]) -> None:
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


def _worked(live: Live, waiting: list[_Waiting]) -> _Batch:
    """Those of the requests, all for one model, that can be answered; the others hear why not."""
    try:
        found = work(live, [one.asked for one in waiting])
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


def work(live: Live, asked: Sequence[Asked]) -> list[Work | Exception]:
    """All phases before the commit, in one call of the model; a request with a fault has that in place of its work."""
    checked: list[list[dict[str, Any]] | Problem] = []
    for one in asked:
        try:
            checked.append(one.form.read(live, one.body) if one.instances is None else one.instances)
        except Problem as problem:
            checked.append(problem)
    mine = [
        instances if isinstance(instances, Problem) or not one.given else _without(instances, one.given)
        for one, instances in zip(asked, checked, strict=True)
    ]
    together = [instance for instances in mine if not isinstance(instances, Problem) for instance in instances]
    try:
        predictions = score(live, together)
    except Exception as error:
        # The others shall not suffer from the one whose answer is no number.
        if len(asked) > 1:
            return [work(live, [one])[0] for one in asked]
        if live.is_prior or isinstance(checked[0], Problem):
            return [error]
        return work(live, [_rescued(live, asked[0]._replace(instances=checked[0]), error)])
    told, classes, scores = outputs(live, predictions), named(live, predictions), predictions.scores.tolist()
    found: list[Work | Exception] = []
    at = 0
    for one, instances, own_rows in zip(asked, checked, mine, strict=True):
        if isinstance(instances, Problem) or isinstance(own_rows, Problem):
            found.append(instances)  # type: ignore[arg-type]
            continue
        own = slice(at, at := at + len(own_rows))
        if one.given:
            answers = [Told(*row) for row in zip(told[own], classes[own], scores[own], strict=True)]
            found.append(_composed(live, one, instances, answers))
            continue
        logged = rows(live, instances, told[own], scores[own], one.at, one.ids)
        found.append(Work(logged, one.form.write(live, logged), classes[own], instances))
    return found


def _without(instances: Sequence[dict[str, Any]], given: Mapping[int, Any]) -> list[dict[str, Any]]:
    return [instance for at, instance in enumerate(instances) if at not in given]


def _rescued(live: Live, asked: Asked, error: Exception) -> Asked:
    """A request with rows that its model cannot answer: the prior answers those, marked as degraded."""
    logging.getLogger(__name__).error("the model failed, its prior answers: %s", type(error).__name__)
    instances = asked.instances or []
    places = [at for at in range(len(instances)) if at not in asked.given]
    mine = [instances[at] for at in places]
    try:
        own = attempt(live, mine)
    except Exception:
        own = [None] * len(mine)
    given = {**asked.given}
    for at, told, prior in zip(places, own, attempt(live.prior, mine), strict=True):
        if told is not None:
            given[at] = live, told
        elif prior is not None:
            given[at] = live.prior, prior
    return asked._replace(given=given)


def _composed(live: Live, asked: Asked, instances: Sequence[Instance], answers: Sequence[Told]) -> Work:
    """The work on a request whose rows several models answered: `answers` are those of its own model, in order."""
    own = iter(answers)
    by_row = [asked.given.get(at) or (live, next(own)) for at in range(len(instances))]
    ids = asked.ids or new_ids(len(instances))
    logged: dict[int, Prediction] = {}
    lives = {id(by): by for by, _ in by_row}
    for by in lives.values():
        places = [at for at, (found, _) in enumerate(by_row) if found is by]
        made = rows(
            by,
            [instances[at] for at in places],
            [by_row[at][1].output for at in places],
            [by_row[at][1].score for at in places],
            asked.at,
            [ids[at] for at in places],
            live.key,
        )
        logged |= zip(places, made, strict=True)
    in_order = [logged[at] for at in range(len(instances))]
    text = asked.form.write(by_row[0][0] if len(lives) == 1 else live, in_order)
    return Work(in_order, text, [told.name for told in answers], instances, list(asked.given.values()))


def score(live: Live, instances: Sequence[Instance]) -> Predictions:
    """All instances in one call of the model."""
    return live.bundle.predict(_columns(live, instances))


def attempt(live: Live, instances: Sequence[Instance]) -> list[Told | None]:
    """As `score`, told row by row; None where the model's answer is no number."""
    answers = live.bundle.run(live.bundle.encode(_columns(live, instances)))
    finite = np.isfinite(answers).all(axis=1)
    predictions = live.bundle.decide(answers[finite])
    parts = (outputs(live, predictions), named(live, predictions), predictions.scores.tolist())
    told = map(Told, *parts)
    return [next(told) if is_finite else None for is_finite in finite.tolist()]


def shadow_rows(live: Live, asked: Sequence[tuple[Instance, Prediction]]) -> list[Prediction]:
    """What the shadow would have answered to rows, for the log; without those where that is no number.

    A row's id is the `twin` of the answered one's.
    """
    started = time.perf_counter()
    found = attempt(live, [instance for instance, _ in asked])
    latency_us = round((time.perf_counter() - started) * 1e6)
    return [
        row._replace(
            id=twin(row.id),
            variant=live.variant,
            model_version=live.ref.version,
            output=told.output,
            score=told.score,
            latency_us=latency_us,
            degraded=False,
        )
        for (_, row), told in zip(asked, found, strict=True)
        if told is not None
    ]


def twin(name: str) -> str:
    """The id of the row that a shadow logs beside the prediction of this id: the same moment, other digits."""
    return name[:12] + blake2b(name.encode(), digest_size=10).hexdigest()


def _columns(live: Live, instances: Sequence[Instance]) -> dict[str, np.ndarray]:
    columns = from_rows(live.others, instances)
    if names := live.numbers:
        # As `from_rows` makes them, all at once: one array of numbers instead of one for each column.
        found = np.array([[row.get(name) for name in names] for row in instances], dtype=np.float64)
        columns |= zip(names, found.reshape(-1, len(names)).T, strict=True)
    return columns


def outputs(live: Live, predictions: Predictions) -> list[str]:
    """What each instance is told and the log keeps, as JSON objects."""
    values, numbers = predictions.values.tolist(), predictions.output.tolist()
    if not live.class_names:
        return [
            f'{{"prediction":{value!r},"interval":[{own[1]!r},{own[2]!r}]}}'
            for value, own in zip(values, numbers, strict=True)
        ]
    names, form = live.class_texts, live.probabilities_form
    return [f'{{"prediction":{names[value]},{form % tuple(own)}}}' for value, own in zip(values, numbers, strict=True)]


def named(live: Live, predictions: Predictions) -> list[str]:
    """Each prediction's class as the metrics name it; all numbers count as one."""
    values = predictions.values.tolist()
    return [name_of(value) for value in values] if live.class_names else ["value"] * len(values)


def rows(
    live: Live,
    instances: Sequence[Instance],
    told: Sequence[str],
    scores: Sequence[float],
    since: float,
    ids: Sequence[str] | None = None,
    key: str | None = None,
) -> list[Prediction]:
    """What the log keeps of each instance; its latency is the request's, from its arrival to its scores.

    Args:
        since: when the request came (`time.perf_counter`).
        ids: new ones are made if there are none yet.
        key: the column that names a row; the model's own if not given.
    """
    at_us, latency_us = now_us(), round((time.perf_counter() - since) * 1e6)
    key, variant, version, degraded = key or live.key, live.variant, live.ref.version, live.degraded
    return [
        Prediction(
            name,
            at_us,
            None if key is None or instance.get(key) is None else str(instance[key]),
            variant,
            version,
            dumps(instance),
            output,
            score,
            latency_us,
            degraded,
        )
        for name, instance, output, score in zip(ids or new_ids(len(instances)), instances, told, scores, strict=True)
    ]


def answer(live: Live, each: Iterable[str]) -> bytes:
    """The body of an answer in the API's own protocol, each prediction being as `with_id` makes it."""
    return f'{{"predictions":[{",".join(each)}],{live.closing}'.encode()


def with_id(name: str, output: str) -> str:
    """What an instance is told, from what `outputs` says of it."""
    return f'{{"id":"{name}",{output[1:]}'


class _Own:
    """The API's own protocol: `{"instances": [{...}]}`."""

    def read(self, live: Live, body: bytes) -> list[dict[str, Any]]:
        return live.schema.instances(body)

    def write(self, live: Live, logged: Sequence[Prediction]) -> bytes:
        if are_of_several(logged):
            return answer_of_several(live, logged)
        return answer(live, [with_id(row.id, row.output) for row in logged])


OWN = _Own()


def are_of_several(logged: Sequence[Prediction]) -> bool:
    """Whether several models answered the rows of a request."""
    first = logged[0].variant
    return any(row.variant != first for row in logged)


def answer_of_several(live: Live, logged: Sequence[Prediction]) -> bytes:
    """As `answer`, where several models answered: each prediction names its own, the end names the request's."""
    own = {by: to_json({"model_version": by[0], "variant": by[1]}).decode()[1:] for by in set(map(_model_of, logged))}
    told = ",".join([f"{with_id(row.id, row.output)[:-1]},{own[_model_of(row)]}" for row in logged])
    closing = live.closing_degraded if any(row.degraded for row in logged) else live.closing
    return f'{{"predictions":[{told}],{closing}'.encode()


def _model_of(row: Prediction) -> tuple[str, str]:
    return row.model_version, row.variant


def log_problem(error: BaseException) -> Problem:
    """What a caller hears when nothing can be logged: no answer without a record. The server's log says why."""
    # The driver's own words name the fault; SQLAlchemy's would repeat the row, which is the caller's.
    told = isinstance(error, ProjectError | sqlite3.OperationalError)
    reason = error if told else getattr(error, "orig", type(error).__name__)
    logging.getLogger(__name__).error("prediction log: %s", reason)
    return Problem(
        503, "prediction-log-unavailable", "the prediction log takes no rows now; try again", {"Retry-After": "1"}
    )
