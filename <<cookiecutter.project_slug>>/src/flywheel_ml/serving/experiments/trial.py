"""A model on trial beside the champion: whose rows it answers, on which thread, and when the trial is paused."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flywheel_ml.core.routing import Challenger, Shadow

if TYPE_CHECKING:
    from flywheel_ml.serving.models.live import Live

T = TypeVar("T")

WINDOW, FAILURES = 100, 5
"""A trial is paused when so many of its last calls failed."""
CHUNK = 500
"""Most rows of one call, so that a large request does not keep small ones waiting."""
MOST_ROWS = 5000
"""Most rows that wait for one model on trial."""
NICE = 10
"""By how much a trial's thread gives way to others: with a core to spare it notices nothing, without one the champion
does not either. At 0, on two cores that others kept busy, a slow one doubled the p99 of the champion's callers."""
KEY_HEADER, VARIANT_HEADER = b"x-routing-key", b"x-variant"

SLOW, RAISED, NO_NUMBER, BUSY = "slow", "raised", "no number", "busy"


class Wish(NamedTuple):
    """What a request's headers say of who answers it: a key to go by, and a tester's choice."""

    key: bytes = b""
    variant: bytes = b""


NO_WISH = Wish()


def wish_of(headers: Mapping[bytes, bytes], may_choose: bool) -> Wish:
    """The wish of a request; a choice counts only where the settings allow it."""
    return Wish(headers.get(KEY_HEADER, b""), headers.get(VARIANT_HEADER, b"").lower() if may_choose else b"")


class Trial:
    """A challenger or a shadow in service, with a thread of its own: whatever it does there, the champion goes on.

    The breaker opens when `FAILURES` of the last `WINDOW` calls failed, and stays open: a trial begins anew, with
    another salt, when a person starts it again.

    Args:
        live: the model.
        asked: what routing says of it.
        on_pause: called once, when the breaker opens.
    """

    def __init__(self, live: "Live", asked: Challenger | Shadow, on_pause: Callable[["Trial", str], None]) -> None:
        self.live = live
        self.asked = asked
        self.paused: tuple[datetime, str] | None = None
        self.is_stuck = False
        """Whether a call is overdue: nobody else need wait for it."""
        self.is_asked = False
        self.pending: list[Any] = []
        """What came in the event loop while it was asked, for the next call; there is one at a time from there."""
        self._on_pause = on_pause
        self._calls: deque[bool] = deque(maxlen=WINDOW)
        self._rows = 0
        self._turn = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def is_same(self, asked: Challenger | Shadow) -> bool:
        """Whether this is the experiment that is asked for, whatever its share now."""
        return (type(self.asked), self.asked.ref, self.asked.salt) == (type(asked), asked.ref, asked.salt)

    def chosen(
        self, column: str | None, instances: Sequence[Mapping[str, Any]], ids: Sequence[str], wish: Wish
    ) -> list[int]:
        """Places of the rows that this challenger answers.

        A row goes by its own value of `column`, else by the request's key, else by its prediction's new id, by chance.
        """
        if not isinstance(self.asked, Challenger) or wish.variant == b"champion":
            return []
        if wish.variant == b"challenger":
            return list(range(len(instances)))
        found = []
        for at, instance in enumerate(instances):
            named = None if column is None else instance.get(column)
            key = str(named).encode() if named is not None else wish.key or ids[at].encode()
            if self.asked.takes(key):
                found.append(at)
        return found

    def submit(self, rows: int, job: Callable[[], T]) -> Future[T] | None:
        """Do a job of so many rows after those before it; None when too much waits already."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(job())
            except BaseException as error:  # Whatever it was, the caller hears of it and the thread goes on.
                done.set_exception(error)
            finally:
                with self._turn:
                    self._rows -= rows

        with self._turn:
            if self._closed or self._rows + rows > MOST_ROWS:
                return None
            self._rows += rows
            if self._thread is None:
                # A daemon: a model that never returns must not keep the server from stopping.
                self._thread = threading.Thread(target=self._work, name=self.live.variant, daemon=True)
                self._thread.start()
        self._jobs.put(run)
        return done

    def patience(self, seconds: float) -> float:
        """How long to wait for the job submitted last, when `seconds` is the time for each `CHUNK` of rows."""
        return seconds * (1 + self._rows // CHUNK)

    def note(self, failure: str | None) -> None:
        """Count a call that failed for a reason, or went well."""
        with self._turn:
            self._calls.append(failure is not None)
            if failure is None or self.paused or self._closed or sum(self._calls) < FAILURES:
                return
            reason = f"{sum(self._calls)} of its last {len(self._calls)} calls failed, the last one: {failure}"
            self.paused = (datetime.now(UTC), reason)
        self._on_pause(self, reason)

    def close(self) -> None:
        """End the thread after the jobs at hand; later ones are not taken."""
        with self._turn:
            self._closed = True
        self._jobs.put(None)

    def _work(self) -> None:
        if sys.platform == "linux":  # Elsewhere only whole processes have a priority.
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICE)
        while (job := self._jobs.get()) is not None:
            job()
