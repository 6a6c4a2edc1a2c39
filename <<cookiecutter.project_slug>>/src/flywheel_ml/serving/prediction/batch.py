"""Pending requests, and the batches that complete them."""

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
from flywheel_ml.serving.prediction.requests import CompletedRequest, PredictRequest

ResponseCallback = Callable[[bytes | Exception], None]


class PendingRequest(NamedTuple):
    """A request that waits for its response; `callback` gets the response or the error."""

    deployment: Deployment
    request: PredictRequest
    callback: ResponseCallback

    def respond(self, found: bytes | Exception) -> None:
        """Deliver the result; a failing callback must not affect the rest of the batch."""
        try:
            self.callback(found)
        except Exception:
            fields = self.request.context.fields
            logging.getLogger(__name__).exception("a response could not be delivered", extra=fields)


class Batch(NamedTuple):
    """Completed requests of one deployment, and their rows for the prediction log."""

    deployment: Deployment
    pending: list[PendingRequest]
    completed: list[CompletedRequest]
    rows: list[Row]

    def split(self) -> "list[Batch]":
        """Return one batch per request."""
        pairs = zip(self.pending, self.completed, strict=True)
        return [Batch(self.deployment, [one], [completed], list(completed.rows)) for one, completed in pairs]


def complete_batches(
    pending: Sequence[PendingRequest],
    dispatch: Callable[[Deployment, list[PendingRequest]], list[PendingRequest]],
    marks: Marks,
) -> list[Batch]:
    """Complete requests, one batch for each run of requests with the same deployment.

    Args:
        pending: requests in order of arrival.
        dispatch: selects the requests that can be answered now, if the deployment has a challenger.
        marks: gets the end of each phase.
    """
    batches = []
    for deployment, group in groupby(pending, key=attrgetter("deployment")):
        some = list(group)
        if deployment.challengers:
            some = dispatch(deployment, some)
        batches.append(_complete_batch(deployment, some, marks))
    return batches


def _complete_batch(deployment: Deployment, pending: list[PendingRequest], marks: Marks) -> Batch:
    """Complete requests of one deployment; invalid requests get their error immediately."""
    found: Sequence[CompletedRequest | Exception]
    try:
        found = complete(deployment.model, [one.request for one in pending], marks)
    except Exception as error:
        found = [error] * len(pending)
    batch = Batch(deployment, [], [], [])
    for one, result in zip(pending, found, strict=True):
        if isinstance(result, CompletedRequest):
            batch.pending.append(one)
            batch.completed.append(result)
            batch.rows.extend(result.rows)
        else:
            one.respond(result)
    return batch


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Schedule a call in the event loop from any thread; does nothing if the loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
