"""The phases of a batch, and the times at which they end."""

from collections.abc import Sequence

PHASES = ("queue", "validate", "score", "encode", "commit", "respond")
Marks = list[float]
"""Times: the oldest request was received, its batch began, and each later phase ended."""


def compute_durations(marks: Sequence[float]) -> dict[str, float]:
    """Return the seconds of each phase that has ended."""
    return {phase: end - start for phase, start, end in zip(PHASES, marks, marks[1:], strict=False)}
