"""A prediction log's writer whose backlog is known."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from flywheel_ml.prediction_log import Row, Writer
from flywheel_ml.serving.observability.backlog import Backlog


class WatchedWriter(Writer):
    """A writer whose backlog is known: what `commit` does at once never waits.

    Args:
        backlog: where that is kept.
        target: as the writer's.
        role: as the writer's.
        options: as the writer's.
    """

    def __init__(self, backlog: Backlog, target: str, role: str, **options: Any) -> None:
        self._backlog = backlog
        super().__init__(target, role, **options)

    def append(self, rows: Sequence[Row]) -> Future[None]:
        """As the writer's."""
        ticket = self._backlog.hand(len(rows))
        committed = super().append(rows)
        committed.add_done_callback(lambda _: self._backlog.settle(ticket))
        return committed
