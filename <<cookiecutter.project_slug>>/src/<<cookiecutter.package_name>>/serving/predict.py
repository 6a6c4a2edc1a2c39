"""The hot path: bodies in, committed rows and answers out.

What came in while the last batch was worked on is the next batch: checked, scored by one call of the model,
committed by one transaction, answered. There is no timer, so a lone request waits for nobody. The phases are
functions of their own: `Schema.instances` checks, `score` asks the model, `outputs` and `rows` say what is told
and logged, `answer` writes.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..bundle import Predictions
from ..contract import from_rows
from ..errors import ProjectError
from ..prediction_log import Prediction, Row, Writer, dumps, new_ids, now_us
from .live import Live, name_of
from .problems import Problem
from .telemetry import Metrics

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


class Asked(NamedTuple):
    """A request's body, when it came (`time.perf_counter`), and the protocol it is written in."""

    body: bytes
    at: float
    form: Form


class Work(NamedTuple):
    """What one request came to: rows for the log, and the answer that may be sent once they are committed."""

    rows: Sequence[Row]
    answer: bytes
    classes: list[str]


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

    def __init__(self, log: Writer, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._waiting: list[_Waiting] = []
        self._is_busy = False
        self._commits = 0
        self.connections: Callable[[], int] = lambda: BATCH_REQUESTS
        """How many clients there are; a server replaces it by what it knows."""
        metrics.queued.set_function(lambda: len(self._waiting))

    async def predict(self, live: Live, body: bytes, form: Form | None = None) -> bytes:
        """The answer to a body, after its rows were committed.

        Raises:
            Problem: 400 or 422 for the body; 503 when the log takes nothing.
        """
        if len(body) > INLINE_BYTES:
            asked = Asked(body, time.perf_counter(), form or OWN)
            return await self.alone(live, lambda: _only(work(live, [asked])))
        answer: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self.submit(live, body, lambda found: None if answer.done() else answer.set_result(found), form)
        found = await answer
        if isinstance(found, Exception):
            raise found
        return found

    async def alone(self, live: Live, make: Callable[[], Work]) -> bytes:
        """The answer to one large request, made and committed beside the event loop; raises as `predict` and `make`."""
        done = await asyncio.get_running_loop().run_in_executor(self._pool, self._made, make)
        self._count(live, [done])
        return done.answer

    def submit(self, live: Live, body: bytes, done: Done, form: Form | None = None) -> None:
        """Like `predict` for a body of at most `INLINE_BYTES`; `done` is called with the answer or the error."""
        self._waiting.append(_Waiting(live, Asked(body, time.perf_counter(), form or OWN), done))
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
        batches = [_worked(list(some)) for _, some in groupby(taken, key=lambda one: id(one.live))]
        started = time.perf_counter()
        rows = _rows(batches)
        if not rows or self._log.commit(rows):
            self._metrics.log_seconds.observe(time.perf_counter() - started)
            self._acknowledge(batches)
            self._go_on()
        else:
            self._commit_beside(batches, rows)

    def _go_on(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._is_busy:
            asyncio.get_running_loop().call_soon(self._next_batch)

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
            batches[0].waiting[0].tell(log_problem(error))
        if not self._commits:
            self._go_on()

    def _acknowledge(self, batches: list[_Batch]) -> None:
        for batch in batches:
            for waiting, work in zip(batch.waiting, batch.works, strict=True):
                waiting.tell(work.answer)
            self._count(batch.live, batch.works)

    def _count(self, live: Live, works: Sequence[Work]) -> None:
        self._metrics.batches.inc()
        names = [name for work in works for name in work.classes]
        self._metrics.predicted(live.ref.version, live.variant, names, live.degraded)

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


def _worked(waiting: list[_Waiting]) -> _Batch:
    """Those of the requests, all for one model, that can be answered; the others hear why not."""
    live = waiting[0].live
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
            checked.append(one.form.read(live, one.body))
        except Problem as problem:
            checked.append(problem)
    together = [instance for instances in checked if not isinstance(instances, Problem) for instance in instances]
    try:
        predictions = score(live, together)
    except Exception as error:
        # The others shall not suffer from the one whose answer is no number.
        return [work(live, [one])[0] for one in asked] if len(asked) > 1 else [error]
    told, classes, scores = outputs(live, predictions), named(live, predictions), predictions.scores.tolist()
    found: list[Work | Exception] = []
    at = 0
    for one, instances in zip(asked, checked, strict=True):
        if isinstance(instances, Problem):
            found.append(instances)
            continue
        own = slice(at, at := at + len(instances))
        logged = rows(live, instances, told[own], scores[own], one.at)
        found.append(Work(logged, one.form.write(live, logged), classes[own]))
    return found


def score(live: Live, instances: Sequence[Instance]) -> Predictions:
    """All instances in one call of the model."""
    columns = from_rows(live.others, instances)
    if names := live.numbers:
        # As `from_rows` makes them, all at once: one array of numbers instead of one for each column.
        found = np.array([[row.get(name) for name in names] for row in instances], dtype=np.float64)
        columns |= zip(names, found.reshape(-1, len(names)).T, strict=True)
    return live.bundle.predict(columns)


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
    live: Live, instances: Sequence[Instance], told: Sequence[str], scores: Sequence[float], since: float
) -> list[Prediction]:
    """What the log keeps of each instance; its latency is the request's, from its arrival to its scores."""
    at_us, latency_us = now_us(), round((time.perf_counter() - since) * 1e6)
    key, variant, version, degraded = live.key, live.variant, live.ref.version, live.degraded
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
        for name, instance, output, score in zip(new_ids(len(instances)), instances, told, scores, strict=True)
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
        return answer(live, [with_id(row.id, row.output) for row in logged])


OWN = _Own()


def log_problem(error: BaseException) -> Problem:
    """What a caller hears when nothing can be logged: no answer without a record. The server's log says why."""
    # The driver's own words name the fault; SQLAlchemy's would repeat the row, which is the caller's.
    told = isinstance(error, ProjectError | sqlite3.OperationalError)
    reason = error if told else getattr(error, "orig", type(error).__name__)
    logging.getLogger(__name__).error("prediction log: %s", reason)
    return Problem(
        503, "prediction-log-unavailable", "the prediction log takes no rows now; try again", {"Retry-After": "1"}
    )
