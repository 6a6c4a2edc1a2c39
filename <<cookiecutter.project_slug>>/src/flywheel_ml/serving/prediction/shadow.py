"""What a shadow is asked once the answer is on its way, and logs beside it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import groupby

from flywheel_ml.prediction_log import Prediction
from flywheel_ml.serving.experiments.trial import CHUNK, MOST_ROWS, NO_NUMBER, RAISED, Trial
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Metrics
from flywheel_ml.serving.prediction.batches import post
from flywheel_ml.serving.prediction.phases import Work, shadow_rows


class Shadowed:
    """Has shadows answer what was answered, and counts what the log keeps of it.

    Args:
        metrics: where rows are counted, and those that were dropped.
        wake: called in the event loop when there are rows for `take`.
    """

    def __init__(self, metrics: Metrics, wake: Callable[[], None]) -> None:
        self._metrics = metrics
        self._wake = wake
        self._rows: list[Prediction] = []

    def __len__(self) -> int:
        return len(self._rows)

    def take(self) -> list[Prediction]:
        """The rows that wait for the log."""
        rows, self._rows = self._rows, []
        return rows

    def ask(self, live: Live, works: Sequence[Work]) -> None:
        """Ask the model's shadow, if it has one, for what was logged row by row."""
        trial = live.shadow
        if trial is None or trial.paused:
            return
        pairs = [
            (instance, row)
            for work in works
            for instance, row in zip(work.instances, work.rows, strict=True)
            if isinstance(row, Prediction)
        ]
        room = max(0, MOST_ROWS - len(trial.pending))
        trial.pending += pairs[:room]
        self._metrics.dropped.inc(len(pairs[room:]))
        if not trial.is_asked:
            self._next(trial)

    def _next(self, trial: Trial) -> None:
        some, trial.pending = trial.pending[:CHUNK], trial.pending[CHUNK:]
        asked = trial.submit(len(some), partial(shadow_rows, trial.live, some))
        if asked is None:  # It is no longer in service.
            self._drop(trial, len(some))
            return
        trial.is_asked = True
        asked.add_done_callback(partial(post, asyncio.get_running_loop(), self._keep, trial, len(some)))

    def _keep(self, trial: Trial, rows: int, asked: "Future[list[Prediction]]") -> None:
        """Take what the shadow said into the next transaction."""
        found = [] if asked.exception() else asked.result()
        trial.note(None if len(found) == rows else RAISED if asked.exception() else NO_NUMBER)
        self._metrics.dropped.inc(rows - len(found))
        trial.is_asked = False
        if trial.paused:
            self._drop(trial)
        if trial.pending:
            self._next(trial)
        self._rows += found
        if found:
            self._wake()

    def _drop(self, trial: Trial, more: int = 0) -> None:
        self._metrics.dropped.inc(len(trial.pending) + more)
        trial.pending = []

    def after(self, rows: Sequence[Prediction], committed: "Future[None]") -> None:
        """Rows that were taken are in the log, or not."""
        if committed.exception() is None:
            self.count(rows)
        else:
            self._metrics.dropped.inc(len(rows))

    def count(self, rows: Sequence[Prediction]) -> None:
        """Rows that were taken are in the log."""
        for version, some in groupby(rows, key=lambda row: row.model_version):
            self._metrics.predicted(version, "shadow", ["" for _ in some], degraded=False)
