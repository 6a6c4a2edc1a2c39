"""A writer of the prediction log that reports its backlog."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from flywheel_ml.prediction_log import Row, Writer
from flywheel_ml.serving.observability.backlog import Backlog


class InstrumentedWriter(Writer):
    """A `Writer` that records the rows of `append` in a backlog; rows of `try_commit` never wait.

    Args:
        backlog: records the rows that wait.
        target: see `Writer`.
        role: see `Writer`.
        options: see `Writer`.
    """

    def __init__(self, backlog: Backlog, target: str, role: str, **options: Any) -> None:
        self._backlog = backlog
        super().__init__(target, role, **options)

    def append(self, rows: Sequence[Row]) -> Future[None]:
        """See `Writer.append`."""
        token = self._backlog.add(len(rows))
        committed = super().append(rows)
        committed.add_done_callback(lambda _: self._backlog.remove(token))
        return committed
