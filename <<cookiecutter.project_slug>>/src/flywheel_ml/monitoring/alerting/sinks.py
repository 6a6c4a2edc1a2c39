"""Sinks: where notifications go. A sink is a function that returns if it accepted them, and raises if not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flywheel_ml.monitoring.alerting.notification import Notification

SendFunction = Callable[[Sequence[Notification]], object]
"""Sends notifications, at most 20 at a time; an exception means that none of them was accepted."""


class SinkError(Exception):
    """A sink did not accept notifications.

    Args:
        reason: what it did, in words that follow its name; without secrets.
        permanent: whether the same notifications would be rejected again.
        unreadable: whether one of several notifications may be the cause.
        retry_after: seconds that the sink asks to wait.
    """

    def __init__(
        self, reason: str, permanent: bool = False, unreadable: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.unreadable = unreadable
        self.retry_after = retry_after


class Sink(NamedTuple):
    """A configured sink.

    Attributes:
        name: its name in the outbox and in messages.
        setting: what configures it, for messages.
        send: sends notifications.
        is_reminded: whether it forgets open conditions unless they are sent again in every run.
    """

    name: str
    setting: str
    send: SendFunction
    is_reminded: bool = False
