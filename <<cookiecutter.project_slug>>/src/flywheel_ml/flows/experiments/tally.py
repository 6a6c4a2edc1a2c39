"""Adds up a metric over labelled rows, by time and by slice, in memory that does not grow with the rows."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_ml.experiments.sequential import LossSums

MAX_SLICES = 20
"""Most values of one column that are kept apart, the first ones that occur; the others are one slice."""
OTHER_VALUES = "other values"

Slice = tuple[str, str]
"""A column and its value."""


class Looks:
    """Divides the time of an experiment into equal parts; the report looks at the end of each.

    Args:
        since_us: start of the experiment.
        until_us: its end, or now.
        count: number of parts.
    """

    def __init__(self, since_us: int, until_us: int, count: int) -> None:
        self.since_us, self.until_us, self.count = since_us, until_us, count
        self.width_us = max(1, -(-(until_us - since_us) // count))

    def find(self, timestamp_us: int) -> int:
        """Return the part of a time."""
        return min(max((timestamp_us - self.since_us) // self.width_us, 0), self.count - 1)

    def end_us(self, at: int) -> int:
        """Return the end of a part."""
        return min(self.since_us + (at + 1) * self.width_us, self.until_us)


class Tally:
    """Sums of one model's rows in one period: rows, total, squares of each look.

    If entities have several rows, each entity counts once, with the mean of its rows, at the look of its first row.

    Args:
        looks: their number.
        by_entity: whether entities have several rows. Then memory grows with their number: 200 MB for a million.
    """

    def __init__(self, looks: int, by_entity: bool) -> None:
        self._sums = np.zeros((3, looks))
        self._by_entity = by_entity
        self._entities: dict[str, tuple[int, int, float]] = {}

    def add(self, look: int, value: float, entity: str | None = None) -> None:
        """Add the value of a row."""
        if self._by_entity and entity is not None:
            first, count, total = self._entities.get(entity, (look, 0, 0.0))
            self._entities[entity] = first, count + 1, total + value
            return
        self._sums[:, look] += 1.0, value, value * value

    def add_zeros(self, look: int, rows: int) -> None:
        """Add rows whose value is 0."""
        self._sums[0, look] += rows

    def sum_up(self) -> LossSums:
        """Return the sums of each look, cumulated: up to its end."""
        sums = self._sums.copy()
        for look, count, total in self._entities.values():
            mean = total / count
            sums[:, look] += 1.0, mean, mean * mean
        return LossSums(*sums.cumsum(axis=1))


class SlicedTally(Tally):
    """A tally, and one without looks for each slice; arguments as in `Tally`."""

    def __init__(self, looks: int, by_entity: bool) -> None:
        super().__init__(looks, by_entity)
        self.slices: dict[Slice, Tally] = {}

    def add_to_slices(self, slices: Sequence[Slice], value: float, entity: str | None = None) -> None:
        """Add the value of a row to its slices."""
        for one in slices:
            if one not in self.slices:
                self.slices[one] = Tally(1, self._by_entity)
            self.slices[one].add(0, value, entity)


class SliceNames:
    """Finds the slices of a row, for all models alike.

    Args:
        columns: by whose values rows are sliced.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._known: dict[str, set[str]] = {column: set() for column in columns}

    def find(self, inputs: str) -> list[Slice]:
        """Return the slices of a row with these inputs, a JSON text."""
        if not self._known:
            return []
        row = json.loads(inputs)
        return [(column, self._limit(column, row.get(column))) for column in self._known]

    def _limit(self, column: str, value: Any) -> str:
        known, name = self._known[column], "missing" if value is None else str(value)
        if name not in known and len(known) >= MAX_SLICES:
            return OTHER_VALUES
        known.add(name)
        return name
