"""How often a key may ask."""

import time
from collections.abc import Hashable

MOST = 1000
"""Keys remembered before the idle ones are forgotten."""


class RateLimit:
    """A bucket of tokens per key, within one process and without a timer.

    It is the generic cell rate algorithm of ITU-T I.371.

    Args:
        per_second: tokens that come to a bucket in a second.
        burst: tokens that it holds; 0 for as many as come in a second, and at least one.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._step = 1 / per_second
        self._room = self._step * (burst or max(1.0, per_second))
        self._full: dict[Hashable, float] = {}

    def wait(self, key: Hashable) -> float:
        """Take a token and return 0.0, or the seconds until there is one."""
        now = time.monotonic()
        # A bucket is told by the moment at which it will be full again; one that is full is as good as none.
        full = max(self._full.get(key, now), now) + self._step
        if (missing := full - now - self._room) > self._step / 1000:
            return missing
        if len(self._full) > MOST and key not in self._full:
            self._full = {name: at for name, at in self._full.items() if at > now}
        self._full[key] = full
        return 0.0
