"""Labels: what turned out, for predictions made earlier."""

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
from flywheel_ml.serving.observability.tracing import NO_REQUEST, RequestContext
from flywheel_ml.serving.prediction.batcher import log_problem
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import canonical_json

LOCK_SECONDS = 5.0
LABEL_SECONDS = 12.0
"""How long a request may take, those before it and their commits included."""
SHOWN = 20


class Labeller:
    """Takes labels into the log.

    Args:
        target: the log's folder or database URL.
        log: this process's writer to it.
        metrics: where commits that fail are counted.
    """

    def __init__(self, target: str, log: Writer, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._reader = Reader(target, keep_open=True)
        spooled = log.spool.folder if log.spool else None
        self._folder = spooled if "://" in target else Path(target)
        # One after the other, and on no thread that anybody else needs: a database that freezes keeps it.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="labels")

    async def accept(self, labels: Sequence[Mapping[str, Any]], origin: RequestContext = NO_REQUEST) -> int:
        """Commit labels; how many of them the log holds now.

        Args:
            labels: `id` of a prediction, its `label`, and perhaps when it turned out, as `at`, now if not; the same
                label again is no fault, and changes nothing.
            origin: the request that brought them.

        Raises:
            Problem: 404 for ids that nobody predicted, 409 for a label that contradicts an earlier one,
                503 when the log takes nothing. Nothing of the request is stored then.
        """
        now, asked = now_us(), dict[str, Outcome]()
        for label in labels:
            timestamp_us = _us(label["at"]) if "at" in label else now
            outcome = Outcome(label["id"], timestamp_us, canonical_json(label["label"]))
            if asked.setdefault(outcome.prediction_id, outcome).label != outcome.label:
                raise _conflict([outcome.prediction_id])
        if (fault := self._log.unavailable_reason) is not None:
            raise log_problem(Unavailable(fault), origin)
        stored = asyncio.get_running_loop().run_in_executor(self._pool, self._store, asked, origin)
        try:
            return await asyncio.wait_for(stored, LABEL_SECONDS)
        except TimeoutError:
            self._metrics.log.failures.inc()
            raise log_problem(ProjectError(f"labels waited longer than {LABEL_SECONDS:g} s"), origin) from None

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    def _store(self, asked: Mapping[str, Outcome], origin: RequestContext) -> int:
        try:
            with self._alone():
                self._append_new(asked)
        except Problem:
            raise
        except LabelConflict as error:  # Another server was quicker by a moment.
            raise _conflict(error.ids) from None
        except Exception as error:
            self._metrics.log.failures.inc()
            raise log_problem(error, origin) from None
        return len(asked)

    def _append_new(self, asked: Mapping[str, Outcome]) -> None:
        ids = list(asked)
        known, stored = self._found(ids)
        if unknown := [one for one in ids if one not in known]:
            raise Problem(
                404, "unknown-prediction", f"{len(unknown)} of the ids belong to no prediction", ids=unknown[:SHOWN]
            )
        if contradicted := [one for one in ids if stored.get(one, asked[one].label) != asked[one].label]:
            raise _conflict(contradicted)
        self._log.append([asked[one] for one in ids if one not in stored]).result()

    def _found(self, ids: Sequence[str]) -> tuple[set[str], dict[str, str]]:
        """Those of the ids that are predictions, and the labels they have."""
        if (spool := self._log.spool) is None:
            return self._reader.find_known(ids), self._reader.labels(ids)
        # In this order: rows move from the spool to the database, and none is missed between the two.
        known, labels = spool.find_known(ids), spool.labels(ids)
        try:
            known |= self._reader.find_known([one for one in ids if one not in known])
            labels |= self._reader.labels(ids)
        except Exception:
            # The database is gone. What waits for it cannot have a label there yet.
            if not known.issuperset(ids):
                if (outage := self._log.outage) is not None:
                    raise Unavailable(outage) from None
                raise
        return known, labels

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Workers write files of their own, so no database forbids two labels of one prediction.
        if self._folder is None:
            yield
        else:
            with filelock.FileLock(self._folder / ".feedback.lock", timeout=LOCK_SECONDS):
                yield


def _us(text: str) -> int:
    """A checked moment as a log time."""
    return (parse_timestamp(text) - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def _conflict(ids: Sequence[str]) -> Problem:
    detail = f"{len(ids)} of the predictions already have another label; the first one counts"
    return Problem(409, "conflicting-label", detail, ids=list(ids[:SHOWN]))
