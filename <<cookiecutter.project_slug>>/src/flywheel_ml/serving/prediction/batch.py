"""Requests on their way through a batch."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
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
    """Requests for one deployment, completed, and their rows for the prediction log."""

    deployment: Deployment
    waiting: list[Waiting]
    completed: list[Completed]
    rows: list[Row]

    def split(self) -> "list[Batch]":
        """Each request alone."""
        pairs = zip(self.waiting, self.completed, strict=True)
        return [Batch(self.deployment, [waiting], [completed], list(completed.rows)) for waiting, completed in pairs]


def complete_batches(
    waiting: Sequence[Waiting], ready: Callable[[Deployment, list[Waiting]], list[Waiting]], marks: Marks
) -> list[Batch]:
    """Complete requests, one batch for neighbours that wait for the same deployment.

    Args:
        waiting: requests in the order of their arrival.
        ready: those of a deployment with a challenger that can be answered now.
        marks: to which the end of each phase is added.
    """
    batches = []
    for deployment, group in groupby(waiting, key=attrgetter("deployment")):
        some = list(group)
        if deployment.challenger is not None:
            some = ready(deployment, some)
        batches.append(_complete_batch(deployment, some, marks))
    return batches


def _complete_batch(deployment: Deployment, waiting: list[Waiting], marks: Marks) -> Batch:
    """Complete requests of one deployment; those with a fault get their error at once."""
    found: Sequence[Completed | Exception]
    try:
        found = complete(deployment.model, [one.request for one in waiting], marks)
    except Exception as error:
        found = [error] * len(waiting)
    batch = Batch(deployment, [], [], [])
    for one, result in zip(waiting, found, strict=True):
        if isinstance(result, Completed):
            batch.waiting.append(one)
            batch.completed.append(result)
            batch.rows.extend(result.rows)
        else:
            one.respond(result)
    return batch


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Have a function called in the loop, from any thread; not at all once the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
