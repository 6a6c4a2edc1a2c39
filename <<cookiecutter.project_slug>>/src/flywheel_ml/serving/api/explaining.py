"""Explanations over HTTP: one at a time on a separate thread, so that they never delay predictions."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from flywheel_ml.explanation.explanation import explain
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.schema.documents import Explanations
from flywheel_ml.utils.errors import NotExplainable

MAX_WAITING = 2
"""Maximum requests that wait for the current explanation; further requests are rejected."""


class Explainer:
    """Answers requests for explanations; call `close` at the end.

    Args:
        full: builds the problem for rejected requests.
    """

    def __init__(self, full: Callable[[], Problem]) -> None:
        self._full = full
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explanation")
        self._slots = threading.BoundedSemaphore(1 + MAX_WAITING)

    async def explain(self, model: ServedModel, body: bytes) -> bytes:
        """Return the response to a body; explanations are not logged as predictions.

        Raises:
            Problem: 400 or 422 for the body, 409 if the model cannot be explained, 503 if too many requests wait.
        """
        if not self._slots.acquire(blocking=False):
            raise self._full()
        work = self._pool.submit(_explain, model, body)
        # The slot is released once the work has ended, even if the client has disconnected.
        work.add_done_callback(self._release_slot)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Stop the thread after the current explanation."""
        self._pool.shutdown(cancel_futures=True)

    def _release_slot(self, _: "Future[bytes]") -> None:
        self._slots.release()


def _explain(model: ServedModel, body: bytes) -> bytes:
    row = model.schema.parse_instance(body)
    if model.is_prior:
        raise _build_not_explainable("the model is unusable, and its class prior gives every row the same prediction")
    try:
        found = explain(model.bundle, row)
    except NotExplainable as error:
        raise _build_not_explainable(str(error)) from None
    response = Explanations(
        explanations=[found], model_version=model.ref.version, variant=model.variant, degraded=model.degraded
    )
    return response.model_dump_json().encode()


def _build_not_explainable(reason: str) -> Problem:
    return Problem(409, "not-explainable", reason)
