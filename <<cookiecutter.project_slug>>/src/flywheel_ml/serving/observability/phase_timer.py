"""Times the phases of a batch."""

import time

PHASES = ("queue", "check", "score", "write", "commit", "answer")


class PhaseTimer(dict[str, float]):
    """How long each phase of a batch took, in seconds.

    Args:
        came: when the request came that waited longest for the batch (`time.perf_counter`).
    """

    def __init__(self, came: float) -> None:
        self._at = time.perf_counter()
        self["queue"] = self._at - came

    def lap(self, phase: str) -> None:
        """What was done since the last call belongs to this phase."""
        now = time.perf_counter()
        self[phase] = self.get(phase, 0.0) + now - self._at
        self._at = now
