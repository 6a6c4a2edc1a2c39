"""Converts the counts of a window to one array and back."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.profile import Counts, Profile
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils.files import canonical_json


def hash_bins(reference: Profile) -> str:
    """Hash the bins and categories of all columns, in order: equal hashes mean that counts can be added."""
    bins = [(name, one.kind, one.edges, one.categories) for name, one in reference.columns.items()]
    return hashlib.sha256(canonical_json(bins).encode()).hexdigest()


def pack(window: Window, contract: Contract) -> np.ndarray:
    """Arrange a window's counts as int64 [n].

    For each column of the profile: its counts, missing, unseen. Then, for each input column: rows out of range.
    """
    of_columns = [
        np.array((*one.counts, one.missing, one.unseen), dtype=np.int64) for one in window.profile.columns.values()
    ]
    outside = np.array([window.out_of_range.get(column.name, 0) for column in contract.inputs], dtype=np.int64)
    return np.concatenate((*of_columns, outside))


def unpack_profile(counts: np.ndarray, rows: int, reference: Profile) -> Profile:
    """Rebuild the profile that `pack` arranged; `rows` is its number of rows."""
    return Profile(rows=rows, columns=dict(_split(counts, reference)))


def unpack_out_of_range(counts: np.ndarray, contract: Contract) -> Mapping[str, int]:
    """Rebuild `Window.out_of_range`."""
    outside = counts[len(counts) - len(contract.inputs) :].tolist()
    return {column.name: rows for column, rows in zip(contract.inputs, outside, strict=True) if rows}


def _split(counts: np.ndarray, reference: Profile) -> Iterator[tuple[str, Counts]]:
    start = 0
    for name, frame in reference.columns.items():
        end = start + len(frame.counts)
        missing, unseen = counts[end : end + 2].tolist()
        update = {"counts": tuple(counts[start:end].tolist()), "missing": missing, "unseen": unseen}
        yield name, frame.model_copy(update=update)
        start = end + 2
