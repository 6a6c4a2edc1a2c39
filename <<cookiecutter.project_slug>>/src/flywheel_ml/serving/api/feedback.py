"""Accepts labels: the actual outcomes of earlier predictions."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import filelock

from flywheel_ml.core.contract import parse_timestamp
from flywheel_ml.prediction_log import LabelConflict, Outcome, Reader, Unavailable, Writer, now_us
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.tracing import NO_CONTEXT, RequestContext
from flywheel_ml.serving.prediction.batcher import build_log_problem
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import canonical_json

LOCK_SECONDS = 5.0
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
        self._reader = Reader(target, keep_open=True)
        spooled = log.spool.folder if log.spool else None
        self._folder = spooled if "://" in target else Path(target)
        # A separate thread that handles one request at a time, because a database that hangs blocks it.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="labels")

    async def accept(self, labels: Sequence[Mapping[str, Any]], origin: RequestContext = NO_CONTEXT) -> int:
        """Commit labels and return how many of them are in the log.

        Args:
            labels: `id` of a prediction, its `label`, and optionally the timestamp of the outcome as `at` (default:
                now). Repeating a label is allowed and has no effect.
            origin: context of the request.

        Raises:
            Problem: 404 for unknown ids, 409 for a label that contradicts an earlier one, 503 if the log is
                unavailable. In each case no label of the request is stored.
        """
        now, outcomes = now_us(), dict[str, Outcome]()
        for label in labels:
            timestamp_us = _parse_timestamp_us(label["at"]) if "at" in label else now
            outcome = Outcome(label["id"], timestamp_us, canonical_json(label["label"]))
            if outcomes.setdefault(outcome.prediction_id, outcome).label != outcome.label:
                raise _build_conflict([outcome.prediction_id])
        if (reason := self._log.unavailable_reason) is not None:
            raise build_log_problem(Unavailable(reason), origin)
        stored = asyncio.get_running_loop().run_in_executor(self._pool, self._store, outcomes, origin)
        try:
            return await asyncio.wait_for(stored, LABEL_SECONDS)
        except TimeoutError:
            self._metrics.log.failures.inc()
            raise build_log_problem(ProjectError(f"labels waited longer than {LABEL_SECONDS:g} s"), origin) from None

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    def _store(self, outcomes: Mapping[str, Outcome], origin: RequestContext) -> int:
        try:
            with self._hold_lock():
                self._append_new(outcomes)
        except Problem:
            raise
        except LabelConflict as error:  # Another server committed a different label in the meantime.
            raise _build_conflict(error.ids) from None
        except Exception as error:
            self._metrics.log.failures.inc()
            raise build_log_problem(error, origin) from None
        return len(outcomes)

    def _append_new(self, outcomes: Mapping[str, Outcome]) -> None:
        ids = list(outcomes)
        known, stored = self._find_stored(ids)
        if unknown := [one for one in ids if one not in known]:
            raise Problem(
                404,
                "unknown-prediction",
                f"{len(unknown)} of the ids are not ids of predictions",
                ids=unknown[:MAX_LISTED_IDS],
            )
        if contradicted := [one for one in ids if stored.get(one, outcomes[one].label) != outcomes[one].label]:
            raise _build_conflict(contradicted)
        self._log.append([outcomes[one] for one in ids if one not in stored]).result()

    def _find_stored(self, ids: Sequence[str]) -> tuple[set[str], dict[str, str]]:
        """Return the ids that belong to predictions, and the labels stored for them."""
        if (spool := self._log.spool) is None:
            return self._reader.find_known(ids), self._reader.labels(ids)
        # The spool first: rows move from the spool to the database, so this order misses none.
        known, labels = spool.find_known(ids), spool.labels(ids)
        try:
            known |= self._reader.find_known([one for one in ids if one not in known])
            labels |= self._reader.labels(ids)
        except Exception:
            # The database is unavailable. Rows that are still in the spool have no label there yet.
            if not known.issuperset(ids):
                if (outage := self._log.outage) is not None:
                    raise Unavailable(outage) from None
                raise
        return known, labels

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        # Each worker writes a separate file, so no database constraint prevents two labels of one prediction.
        if self._folder is None:
            yield
        else:
            with filelock.FileLock(self._folder / ".feedback.lock", timeout=LOCK_SECONDS):
                yield


def _parse_timestamp_us(text: str) -> int:
    """Return a validated timestamp in microseconds, as the log stores it."""
    return (parse_timestamp(text) - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def _build_conflict(ids: Sequence[str]) -> Problem:
    detail = f"{len(ids)} of the predictions already have a different label; the first label is kept"
    return Problem(409, "conflicting-label", detail, ids=list(ids[:MAX_LISTED_IDS]))
