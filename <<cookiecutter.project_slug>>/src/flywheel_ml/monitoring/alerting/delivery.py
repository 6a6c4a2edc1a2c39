"""Delivers what the outbox holds: every sink on its own, with timeouts, retries and a lock."""

import random
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import filelock

from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.outbox import BATCH, Outbox
from flywheel_ml.monitoring.alerting.sinks import Sink, SinkError
from flywheel_ml.utils.errors import ProjectError

FIRST_DELAY = 1.0
"""Seconds before the first retry; each later delay is twice as long, and all are randomised by half."""
MAX_DELAY = 30.0
"""A sink that asks for a longer pause is left to the next run."""
GRACE_SECONDS = 1.0


class AlertError(ProjectError):
    """Alerts could not be delivered to every sink; the outbox keeps them."""


class RetryPolicy(NamedTuple):
    """Seconds until a sink must have answered, and the number of retries."""

    timeout: float
    retries: int
    first_delay: float = FIRST_DELAY


class Delivery(NamedTuple):
    """What happened at one sink: how many notifications it accepted, and the reason if it failed."""

    sink: Sink
    accepted: int
    fault: str = ""


def deliver(outbox: Outbox, sinks: Sequence[Sink], policy: RetryPolicy) -> list[Delivery]:
    """Send each sink what it has not been notified of yet; a sink that fails does not delay the others.

    Delivery is at least once: a process that is killed between an answer and its record sends again.
    """
    return _call_all(lambda sink: _deliver_to(outbox, sink, policy), sinks)


def send_test(sinks: Sequence[Sink], notification: Notification, policy: RetryPolicy) -> list[Delivery]:
    """Send one notification to every sink, past the outbox and without retries."""

    def send(sink: Sink) -> Delivery:
        error = _attempt(sink, [notification], policy.timeout)
        return Delivery(sink, 0 if error else 1, str(error or ""))

    return _call_all(send, sinks)


def raise_faults(deliveries: Sequence[Delivery], waiting: Mapping[str, int], rejected: int = 0) -> None:
    """Raise one line that names the sinks that failed, if any did.

    Args:
        deliveries: what happened at each sink.
        waiting: number of alerts that the outbox still has for a sink.
        rejected: number of alerts that a full outbox did not record.

    Raises:
        AlertError: a sink failed, or the outbox was full.
    """
    failed = [one for one in deliveries if one.fault]
    if failed:
        count = max(waiting.get(one.sink.name, 0) for one in failed)
        subject = "1 alert was" if count == 1 else f"{count:,} alerts were"
        faults = "; ".join(f"{one.sink.name} ({one.sink.setting}) {one.fault}" for one in failed)
        kept = "they are kept, and the next `make monitor` or `make alerts` sends them"
        raise AlertError(f"{subject} not delivered: {faults}; {kept}")
    if rejected:
        raise AlertError(f"{rejected:,} alerts did not fit into the outbox; `make alerts` lists what fills it")


def _call_all(function: Callable[[Sink], Delivery], sinks: Sequence[Sink]) -> list[Delivery]:
    with ThreadPoolExecutor(max_workers=max(1, len(sinks))) as pool:
        return list(pool.map(function, sinks))


def _deliver_to(outbox: Outbox, sink: Sink, policy: RetryPolicy) -> Delivery:
    # A process that holds the lock sends our notifications as well, unless it is about to end.
    wait = (policy.timeout + GRACE_SECONDS) * (policy.retries + 1) + MAX_DELAY
    accepted, skipped, fault = 0, set[int](), ""
    try:
        with filelock.FileLock(outbox.path.with_name(f".{sink.name}.lock"), timeout=wait):
            firing = outbox.list_firing(sink.name) if sink.is_reminded else []
            for at in range(0, len(firing), BATCH):
                _send(sink, firing[at : at + BATCH], policy)
            while due := outbox.list_due(sink.name, skipped):
                rejected = _send_batch(outbox, sink, due, policy)
                accepted += len(due) - len(rejected)
                skipped |= rejected.keys()
                fault = next(iter(rejected.values()), fault)
    except filelock.Timeout:
        return Delivery(sink, accepted, "is in use by another process")
    except SinkError as error:
        return Delivery(sink, accepted, str(error))
    return Delivery(sink, accepted, fault)


def _send_batch(outbox: Outbox, sink: Sink, due: Sequence[Notification], policy: RetryPolicy) -> dict[int, str]:
    """Send one batch; if the sink cannot read it, send its notifications one by one.

    Returns incident → error for those that the sink cannot read. They must not hold back the others.
    """
    outbox.mark_attempt(sink.name, due)
    try:
        _send(sink, due, policy)
    except SinkError as error:
        if not error.unreadable:
            raise
        if len(due) == 1:
            return {int(due[0].incident): str(error)}
        return {incident: fault for one in due for incident, fault in _send_batch(outbox, sink, [one], policy).items()}
    outbox.mark_sent(sink.name, due)
    return {}


def _send(sink: Sink, notifications: Sequence[Notification], policy: RetryPolicy) -> None:
    """Send notifications, with retries and growing, randomised delays.

    Raises:
        SinkError: the sink accepted none of them.
    """
    for number in range(policy.retries + 1):
        error = _attempt(sink, notifications, policy.timeout)
        if error is None:
            return
        delay = max(policy.first_delay * 2**number * random.uniform(0.5, 1.5), error.retry_after)  # noqa: S311
        if error.permanent or number == policy.retries or delay > MAX_DELAY:
            raise error
        time.sleep(delay)


def _attempt(sink: Sink, notifications: Sequence[Notification], timeout: float) -> SinkError | None:
    """Call a sink in a thread of its own: one that never returns is left behind, and ends with the process."""
    outcome: list[SinkError | None] = []

    def call() -> None:
        try:
            sink.send(notifications)
            outcome.append(None)
        except SinkError as error:
            outcome.append(error)
        except Exception as error:
            # The message of a foreign exception may quote an address with a secret; the place is enough to find it.
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
            outcome.append(SinkError(f"raised {type(error).__name__} ({place})"))

    thread = threading.Thread(target=call, daemon=True, name=f"sink {sink.name}")
    thread.start()
    thread.join(timeout + GRACE_SECONDS)
    return outcome[0] if outcome else SinkError(f"did not answer within {timeout:g} s", permanent=True)
