"""What a reader put right in a file, so that it can be reported."""

from typing import NamedTuple


class Repair(NamedTuple):
    """One irregularity of a file: its kind, what was found where, and what the reader made of it."""

    kind: str
    evidence: str
    outcome: str
