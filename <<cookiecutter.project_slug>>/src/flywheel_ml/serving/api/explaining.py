"""Explanations over HTTP: one at a time, on a thread of their own, so that predictions are answered meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from flywheel_ml.explanation.explanation import explain
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.models.served_model import ServedModel
from flywheel_ml.serving.schema.documents import Explanations
from flywheel_ml.utils.errors import NotExplainable

MOST_WAITING = 2
"""So many wait for the one that is worked on; further ones are turned away."""


class Explainer:
    """Answers requests for explanations; `close` when done.

    Args:
        full: what those are told that there is no room for.
    """

    def __init__(self, full: Callable[[], Problem]) -> None:
        self._full = full
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explanation")
        self._places = threading.BoundedSemaphore(1 + MOST_WAITING)

    async def explain(self, model: ServedModel, body: bytes) -> bytes:
        """The answer to a body; nothing of it is logged as a prediction.

        Raises:
            Problem: 400 or 422 for the body, 409 where there is nothing to explain, 503 when too many wait.
        """
        if not self._places.acquire(blocking=False):
            raise self._full()
        work = self._pool.submit(_answer, model, body)
        # The place is free once the work has ended, whether its caller is still there or not.
        work.add_done_callback(self._leave)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Stop the thread after the explanation at hand."""
        self._pool.shutdown(cancel_futures=True)

    def _leave(self, _: "Future[bytes]") -> None:
        self._places.release()


def _answer(model: ServedModel, body: bytes) -> bytes:
    row = model.schema.row(body)
    if model.is_prior:
        raise _not_explainable("no model can be used now, its prior gives every row the same answer")
    try:
        found = explain(model.bundle, row)
    except NotExplainable as error:
        raise _not_explainable(str(error)) from None
    told = Explanations(
        explanations=[found], model_version=model.ref.version, variant=model.variant, degraded=model.degraded
    )
    return told.model_dump_json().encode()


def _not_explainable(reason: str) -> Problem:
    return Problem(409, "not-explainable", reason)
