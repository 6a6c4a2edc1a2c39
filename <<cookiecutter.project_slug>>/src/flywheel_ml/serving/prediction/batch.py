"""Requests on their way through a batch."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from flywheel_ml.prediction_log import Row
from flywheel_ml.serving.models.served_model import Deployment
from flywheel_ml.serving.observability.phases import Marks
from flywheel_ml.serving.prediction.pipeline import complete
from flywheel_ml.serving.prediction.requests import Completed, PredictRequest

Respond = Callable[[bytes | Exception], None]


class Waiting(NamedTuple):
    """A request that waits for its response from a deployment; `callback` is called with it, or with the error."""

    deployment: Deployment
    request: PredictRequest
    callback: Respond

    def respond(self, found: bytes | Exception) -> None:
        """Whatever is wrong with one connection, the others get their response too, and the next batch comes."""
        try:
            self.callback(found)
        except Exception:
            fields = self.request.context.fields
            logging.getLogger(__name__).exception("a response could not be handed on", extra=fields)


class Batch(NamedTuple):
    """Requests for one deployment, completed."""

    deployment: Deployment
    waiting: list[Waiting]
    completed: list[Completed]

    @property
    def rows(self) -> list[Row]:
        """Rows for the prediction log."""
        return [row for one in self.completed for row in one.rows]

    def split(self) -> "list[Batch]":
        """Each request alone."""
        pairs = zip(self.waiting, self.completed, strict=True)
        return [Batch(self.deployment, [waiting], [completed]) for waiting, completed in pairs]


def by_deployment(waiting: Sequence[Waiting]) -> list[tuple[Deployment, list[Waiting]]]:
    """Group neighbours that wait for the same deployment."""
    groups = (list(some) for _, some in groupby(waiting, key=lambda one: id(one.deployment)))
    return [(some[0].deployment, some) for some in groups]


def complete_batch(deployment: Deployment, waiting: list[Waiting], marks: Marks) -> Batch:
    """Complete requests of one deployment; those with a fault get their error at once."""
    found: Sequence[Completed | Exception]
    try:
        found = complete(deployment.model, [one.request for one in waiting], marks)
    except Exception as error:
        found = [error] * len(waiting)
    batch = Batch(deployment, [], [])
    for one, result in zip(waiting, found, strict=True):
        if isinstance(result, Completed):
            batch.waiting.append(one)
            batch.completed.append(result)
        else:
            one.respond(result)
    return batch


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Have a function called in the loop, from any thread; not at all once the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
