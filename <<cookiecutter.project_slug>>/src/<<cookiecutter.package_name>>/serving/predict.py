"""The hot path: a body in, committed rows and a body out.

Its phases are functions of their own: `Schema.instances` checks, `score` asks the model, `outputs` and `rows`
say what is told and logged, `answer` writes. None of them waits; only the commit does.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pydantic_core import to_json

from ..bundle import Predictions
from ..contract import from_rows
from ..errors import ProjectError
from ..prediction_log import Prediction, Writer, dumps, new_id, now_us
from .live import Live, name_of
from .problems import Problem
from .telemetry import Metrics

INLINE_BYTES = 32_768
"""A larger body is worked on beside the event loop, so that others need not wait for it."""

Instance = Mapping[str, Any]
Output = dict[str, Any]


class Work(NamedTuple):
    """What one request came to: rows for the log, and the answer that may be sent once they are committed."""

    rows: list[Prediction]
    answer: bytes
    classes: list[str]


class Predictor:
    """Answers prediction requests; `close` when done.

    Args:
        log: where every prediction is committed before it is acknowledged.
        metrics: where it is counted.
    """

    def __init__(self, log: Writer, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-request")

    async def predict(self, live: Live, body: bytes) -> bytes:
        """The answer to a body, after its rows were committed.

        Raises:
            Problem: 400 or 422 for the body; 503 when the log takes nothing.
        """
        if len(body) <= INLINE_BYTES:
            done = work(live, body)
        else:
            done = await asyncio.get_running_loop().run_in_executor(self._pool, work, live, body)
        await self._commit(done.rows)
        self._metrics.predicted(live.ref.version, live.variant, done.classes, live.degraded)
        return done.answer

    def close(self) -> None:
        """Stop the thread for large requests."""
        self._pool.shutdown()

    async def _commit(self, logged: Sequence[Prediction]) -> None:
        self._metrics.log_pending.inc()
        try:
            with self._metrics.log_seconds.time():
                # The writer's future is shared with its thread: a request that is cancelled must not cancel it.
                await asyncio.shield(asyncio.wrap_future(self._log.append(logged)))
        except Exception as error:
            self._metrics.log_failures.inc()
            raise log_problem(error) from None
        finally:
            self._metrics.log_pending.dec()


def work(live: Live, body: bytes) -> Work:
    """All phases before the commit."""
    started = time.perf_counter()
    instances = live.schema.instances(body)
    predictions = score(live, instances)
    told = outputs(live, predictions)
    # All numbers count as one.
    classes = [name_of(output["prediction"]) if live.class_names else "value" for output in told]
    latency_us = round((time.perf_counter() - started) * 1e6)
    logged = rows(live, instances, told, predictions.scores.tolist(), latency_us)
    return Work(logged, answer(live, logged, told), classes)


def score(live: Live, instances: Sequence[Instance]) -> Predictions:
    """All instances in one call of the model."""
    return live.bundle.predict(from_rows(live.bundle.contract.inputs, instances))


def outputs(live: Live, predictions: Predictions) -> list[Output]:
    """What each instance is told, and the log keeps."""
    answers = zip(predictions.values.tolist(), predictions.output.tolist(), strict=True)
    names = live.class_names
    if not names:
        return [{"prediction": value, "interval": output[1:]} for value, output in answers]
    return [{"prediction": value, "probabilities": dict(zip(names, output, strict=True))} for value, output in answers]


def rows(
    live: Live, instances: Sequence[Instance], told: Sequence[Output], scores: Sequence[float], latency_us: int
) -> list[Prediction]:
    """What the log keeps of each instance; `latency_us` is the request's, from checking to scoring."""
    at_us, key = now_us(), live.bundle.contract.id
    return [
        Prediction(
            id=new_id(),
            at_us=at_us,
            entity=None if key is None or instance.get(key.name) is None else str(instance[key.name]),
            variant=live.variant,
            model_version=live.ref.version,
            inputs=dumps(instance),
            output=dumps(output),
            score=score,
            latency_us=latency_us,
            degraded=live.degraded,
        )
        for instance, output, score in zip(instances, told, scores, strict=True)
    ]


def answer(live: Live, logged: Sequence[Prediction], told: Sequence[Output]) -> bytes:
    """The body of the response."""
    return to_json(
        {
            "predictions": [{"id": row.id, **output} for row, output in zip(logged, told, strict=True)],
            "model_version": live.ref.version,
            "variant": live.variant,
            "degraded": live.degraded,
        }
    )


def log_problem(error: Exception) -> Problem:
    """What a caller hears when nothing can be logged: no answer without a record. The server's log says why."""
    # The driver's own words name the fault; SQLAlchemy's would repeat the row, which is the caller's.
    reason = error if isinstance(error, ProjectError) else getattr(error, "orig", type(error).__name__)
    logging.getLogger(__name__).error("prediction log: %s", reason)
    return Problem(
        503, "prediction-log-unavailable", "the prediction log takes no rows now; try again", {"Retry-After": "1"}
    )
