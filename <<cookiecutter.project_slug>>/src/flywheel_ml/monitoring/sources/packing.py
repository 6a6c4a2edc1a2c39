"""Converts the counts of a window to one array and back."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.profile import PREDICTION, Counts, Profile
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils.files import canonical_json


def hash_bins(reference: Profile) -> str:
    """Hash the bins and categories of all columns: equal hashes mean that counts can be added.

    The first half of the hash is of the inputs, the second half of the prediction.
    """
    halves = (
        [(name, one.kind, one.edges, one.categories) for name, one in _order(reference.columns)[:-1]],
        reference.columns[PREDICTION].edges,
    )
    return "".join(hashlib.sha256(canonical_json(half).encode()).hexdigest()[:32] for half in halves)


def have_equal_inputs(bins: str, other: str) -> bool:
    """Whether the counts of the inputs can be added, by the hashes of two profiles' bins."""
    return bins[:32] == other[:32]


def pack(window: Window, contract: Contract) -> np.ndarray:
    """Arrange a window's counts as int64 [n].

    For each column of the profile, the prediction last: its counts, missing, unseen. Then, for each input column: rows
    out of range.
    """
    of_columns = [_pack_column(one) for _, one in _order(window.profile.columns)]
    outside = np.array([window.out_of_range.get(column.name, 0) for column in contract.inputs], dtype=np.int64)
    return np.concatenate((*of_columns, outside))


def keep_inputs(counts: np.ndarray, reference: Profile, contract: Contract) -> np.ndarray:
    """Keep the counts of the inputs, and set the rest to zero, whose bins may be another model's."""
    size = sum(len(one.counts) + 2 for _, one in _order(reference.columns)[:-1])
    rest = len(_pack_column(reference.columns[PREDICTION])) + len(contract.inputs)
    return np.concatenate((counts[:size], np.zeros(rest, dtype=np.int64)))


def unpack_profile(counts: np.ndarray, rows: int, reference: Profile) -> Profile:
    """Rebuild the profile that `pack` arranged; `rows` is its number of rows."""
    found = dict(_split(counts, reference))
    return Profile(rows=rows, columns={name: found[name] for name in reference.columns})


def unpack_out_of_range(counts: np.ndarray, contract: Contract) -> Mapping[str, int]:
    """Rebuild `Window.out_of_range`."""
    outside = counts[len(counts) - len(contract.inputs) :].tolist()
    return {column.name: rows for column, rows in zip(contract.inputs, outside, strict=True) if rows}


def _split(counts: np.ndarray, reference: Profile) -> Iterator[tuple[str, Counts]]:
    start = 0
    for name, frame in _order(reference.columns):
        end = start + len(frame.counts)
        missing, unseen = counts[end : end + 2].tolist()
        update = {"counts": tuple(counts[start:end].tolist()), "missing": missing, "unseen": unseen}
        yield name, frame.model_copy(update=update)
        start = end + 2


def _pack_column(one: Counts) -> np.ndarray:
    return np.array((*one.counts, one.missing, one.unseen), dtype=np.int64)


def _order(columns: Mapping[str, Counts]) -> list[tuple[str, Counts]]:
    """Put the prediction last: each model has bins of its own for it."""
    return sorted(columns.items(), key=lambda item: item[0] == PREDICTION)
