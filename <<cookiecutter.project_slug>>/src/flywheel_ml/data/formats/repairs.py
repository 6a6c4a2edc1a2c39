"""Repairs that a reader made in a file, for reports."""

from typing import NamedTuple


class Repair(NamedTuple):
    """One repaired irregularity of a file: its kind, the evidence, and the outcome."""

    kind: str
    evidence: str
    outcome: str
