"""Rate limits of API keys."""

import time
from collections.abc import Hashable

MAX_KEYS = 1000
"""Number of keys in memory above which idle ones are dropped."""


class RateLimit:
    """A token bucket per key, within one process and without a timer.

    Implements the generic cell rate algorithm of ITU-T I.371.

    Args:
        per_second: tokens added to a bucket per second.
        burst: capacity of a bucket; 0 for the tokens of one second, but at least one.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._step = 1 / per_second
        self._room = self._step * (burst or max(1.0, per_second))
        self._full: dict[Hashable, float] = {}

    def take_token(self, key: Hashable) -> float:
        """Take a token and return 0.0, or return the seconds until one is available."""
        now = time.monotonic()
        # A bucket is stored as the time at which it will be full again; a full bucket need not be stored.
        full = max(self._full.get(key, now), now) + self._step
        if (missing := full - now - self._room) > self._step / 1000:
            return missing
        if len(self._full) > MAX_KEYS and key not in self._full:
            self._full = {name: at for name, at in self._full.items() if at > now}
        self._full[key] = full
        return 0.0
