"""Rows for a challenger: whose they are, how long they are waited for, and what becomes of them without it.

A request with such rows stands aside until the challenger has answered them on its own thread, or failed to, and then
joins a later batch; nobody else waits.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from flywheel_ml.prediction_log import new_ids
from flywheel_ml.serving.experiments.trial import BUSY, CHUNK, NO_NUMBER, RAISED, SLOW, Trial
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Metrics
from flywheel_ml.serving.prediction.batches import Waiting, post
from flywheel_ml.serving.prediction.phases import Asked, Told, attempt


class Challenged:
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

    def not_aside(self, live: Live, waiting: list[Waiting]) -> list[Waiting]:
        """Those that can be answered now; the others come back when the challenger has answered, or failed to."""
        trial = live.challenger
        if trial is None or trial.paused:
            return waiting
        now: list[Waiting] = []
        aside: list[tuple[Waiting, list[int]]] = []
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
                self._ask(trial)
        return now

    def _ask(self, trial: Trial) -> None:
        """Hand over the rows that are pending, all in one call."""
        aside: list[tuple[Waiting, list[int]]] = trial.pending
        trial.pending = []
        instances = [(one.asked.instances or [])[at] for one, chosen in aside for at in chosen]
        call = _Call(trial, aside, len(instances))
        asked = trial.submit(len(instances), lambda: attempt(trial.live, instances))
        if asked is None:
            self._failed(trial, BUSY, call.rows)
            self._settle(call, [None] * call.rows)
            return
        trial.is_asked = True
        loop = asyncio.get_running_loop()
        seconds = trial.patience(self._seconds)
        call.timer = loop.call_later(seconds, self._late, call, seconds)
        asked.add_done_callback(partial(post, loop, self._challenged, call))

    def _late(self, call: "_Call", seconds: float) -> None:
        # One that never returns is counted again and again, or its breaker would never open.
        trial = call.trial
        trial.is_stuck = True
        self._failed(trial, SLOW, 0 if call.is_settled else call.rows)
        if not trial.paused:
            call.timer = asyncio.get_running_loop().call_later(seconds, self._late, call, seconds)
        if not call.is_settled:
            self._settle(call, [None] * call.rows)
        if trial.pending:
            others = _Call(trial, trial.pending, sum(len(chosen) for _, chosen in trial.pending))
            trial.pending = []
            self._metrics.replaced.labels(BUSY).inc(others.rows)
            self._settle(others, [None] * others.rows)

    def _challenged(self, call: "_Call", asked: "Future[list[Told | None]]") -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.trial.is_stuck = call.trial.is_asked = False
        if call.trial.pending:
            self._ask(call.trial)
        if not call.is_settled:
            self._settle(call, self._judged(call.trial, asked, call.rows))

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

    def _settle(self, call: "_Call", found: Sequence[Told | None]) -> None:
        call.is_settled = True
        answers = iter(found)
        back = []
        for one, chosen in call.aside:
            given = {at: (call.trial.live, told) for at in chosen if (told := next(answers)) is not None}
            back.append(one._replace(asked=one.asked._replace(given=given)))
        self._come_back(back)

    def ask_and_wait(self, live: Live, trial: Trial, asked: Asked) -> Asked:
        """As `not_aside`, for a large request beside the event loop."""
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
                call.exception(trial.patience(self._seconds))
            except TimeoutError:
                self._failed(trial, SLOW, len(rows))
                trial.is_stuck = True
                call.add_done_callback(lambda _: setattr(trial, "is_stuck", False))
                continue
            found = self._judged(trial, call, len(rows))
            given |= {at: (trial.live, told) for at, told in zip(some, found, strict=True) if told is not None}
        return asked._replace(given=given)


class _Call:
    """Rows that a challenger was asked for, and the requests that stand aside for them."""

    def __init__(self, trial: Trial, aside: list[tuple[Waiting, list[int]]], rows: int) -> None:
        self.trial = trial
        self.aside = aside
        self.rows = rows
        self.timer: asyncio.TimerHandle | None = None
        self.is_settled = False


def _for(live: Live, trial: Trial, asked: Asked) -> tuple[Asked, list[int]]:
    """A checked request, and the places of its rows that go to the challenger; raises as `Form.read`."""
    instances = asked.form.read(live, asked.body)
    ids = new_ids(len(instances))
    return asked._replace(instances=instances, ids=ids), trial.chosen(live.key, instances, ids, asked.wish)
