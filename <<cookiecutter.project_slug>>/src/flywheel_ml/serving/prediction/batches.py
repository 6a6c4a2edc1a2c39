"""Requests on their way through a batch."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from flywheel_ml.prediction_log import Row
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Laps
from flywheel_ml.serving.prediction.phases import Asked, Work, work

Done = Callable[[bytes | Exception], None]


class Waiting(NamedTuple):
    """A request that waits for its answer from a model; `done` is called with it, or with the error."""

    live: Live
    asked: Asked
    done: Done

    def tell(self, found: bytes | Exception) -> None:
        """Whatever is wrong with one connection, the others are told too, and the next batch comes."""
        try:
            self.done(found)
        except Exception:
            logging.getLogger(__name__).exception("an answer could not be handed on", extra=self.asked.origin.fields)


class Batch(NamedTuple):
    """Requests for one model, and what they came to."""

    live: Live
    waiting: list[Waiting]
    works: list[Work]

    @property
    def rows(self) -> list[Row]:
        """What the log is to keep of them."""
        return [row for work in self.works for row in work.rows]

    def split(self) -> "list[Batch]":
        """Each of them alone."""
        pairs = zip(self.waiting, self.works, strict=True)
        return [Batch(self.live, [waiting], [work]) for waiting, work in pairs]


def by_model(waiting: Sequence[Waiting]) -> list[tuple[Live, list[Waiting]]]:
    """Neighbours that wait for the same model."""
    groups = (list(some) for _, some in groupby(waiting, key=lambda one: id(one.live)))
    return [(some[0].live, some) for some in groups]


def worked(live: Live, waiting: list[Waiting], laps: Laps) -> Batch:
    """Those of the requests, all for one model, that can be answered; the others hear why not."""
    try:
        found = work(live, [one.asked for one in waiting], laps)
    except Exception as error:
        found = [error] * len(waiting)
    good = Batch(live, [], [])
    for one, done in zip(waiting, found, strict=True):
        if isinstance(done, Work):
            good.waiting.append(one)
            good.works.append(done)
        else:
            one.tell(done)
    return good


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Have a function called in the loop, from any thread; not at all once the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
