"""The phases of a batch, and when each ended."""

from collections.abc import Sequence

PHASES = ("queue", "validate", "score", "encode", "commit", "respond")
Marks = list[float]
"""When the request that waited longest was received, when its batch began, and when each later phase ended."""


def durations(marks: Sequence[float]) -> dict[str, float]:
    """Seconds of each phase that has ended."""
    return {phase: end - start for phase, start, end in zip(PHASES, marks, marks[1:], strict=False)}
