"""Accepts labels: the actual outcomes of earlier predictions."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from flywheel_ml.core.contract import parse_timestamp
from flywheel_ml.prediction_log import EntityOutcome, LabelConflict, MetricValue, Outcome, Unavailable, Writer, now_us
from flywheel_ml.prediction_log.labels.store import Label, LabelStore, UnknownPredictions
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.tracing import NO_CONTEXT, RequestContext
from flywheel_ml.serving.prediction.batcher import build_log_problem
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import canonical_json

LABEL_SECONDS = 12.0
"""Timeout of a request, including the requests before it and their commits."""
MAX_LISTED_IDS = 20


class Labeller:
    """Writes labels to the prediction log.

    Args:
        target: folder or database URL of the log.
        log: this process's writer.
        metrics: counts failed commits.
    """

    def __init__(self, target: str, log: Writer, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._labels = LabelStore(target, log)
        # A separate thread that handles one request at a time, because a database that hangs blocks it.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="labels")

    async def accept(self, labels: Sequence[Mapping[str, Any]], origin: RequestContext = NO_CONTEXT) -> int:
        """Commit labels and return how many different ones of the request are in the log.

        Args:
            labels: `id` of a prediction, its `label`, and optionally the timestamp of the outcome as `at` (default:
                now); or an `entity`, its `label` and the `timestamp` of the outcome; or `id`, name and `value` of a
                business `metric`, and optionally `at`. Repeating a label is allowed and has no effect.
            origin: context of the request.

        Raises:
            Problem: 404 for unknown ids, 409 for a label that contradicts an earlier one, 503 if the log is
                unavailable. In each case no label of the request is stored.
        """
        now = now_us()
        rows = [_build_row(label, now) for label in labels]
        if (reason := self._log.unavailable_reason) is not None:
            raise build_log_problem(Unavailable(reason), origin)
        stored = asyncio.get_running_loop().run_in_executor(self._pool, self._store, rows, origin)
        try:
            return await asyncio.wait_for(stored, LABEL_SECONDS)
        except TimeoutError:
            self._metrics.log.failures.inc()
            raise build_log_problem(ProjectError(f"labels waited longer than {LABEL_SECONDS:g} s"), origin) from None

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._labels.close()

    def _store(self, rows: Sequence[Label], origin: RequestContext) -> int:
        try:
            self._labels.store(rows)
        except UnknownPredictions as error:
            ids = list(error.ids[:MAX_LISTED_IDS])
            raise Problem(404, "unknown-prediction", str(error), ids=ids) from None
        except LabelConflict as error:
            raise _build_conflict(error.ids) from None
        except Exception as error:
            self._metrics.log.failures.inc()
            raise build_log_problem(error, origin) from None
        return len({(type(row), row.key) for row in rows})


def _build_row(label: Mapping[str, Any], now: int) -> Label:
    if "metric" in label:
        at = _parse_timestamp_us(label["at"]) if "at" in label else now
        return MetricValue(label["id"], label["metric"], at, float(label["value"]), now)
    text = canonical_json(label["label"])
    if "entity" in label:
        return EntityOutcome(str(label["entity"]), _parse_timestamp_us(label["timestamp"]), text, now)
    return Outcome(label["id"], _parse_timestamp_us(label["at"]) if "at" in label else now, text, now)


def _parse_timestamp_us(text: str) -> int:
    """Return a validated timestamp in microseconds, as the log stores it."""
    return (parse_timestamp(text) - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def _build_conflict(ids: Sequence[str]) -> Problem:
    detail = f"{len(ids)} of the predictions or entities already have a different label or value; the first is kept"
    return Problem(409, "conflicting-label", detail, ids=list(ids[:MAX_LISTED_IDS]))
