"""Comparison of outputs, and objects that test processes share."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import filelock
import numpy as np
import pytest

Made = TypeVar("Made")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two float arrays are equal to the last bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def build_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """Return an object that all test workers share; the first that needs it makes it in a folder of that name."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    made = shared / f"{name}.pickle"
    with filelock.FileLock(shared / f"{name}.lock"):
        if not made.is_file():
            made.write_bytes(pickle.dumps(make(shared / name / "project")))
        return cast("Made", pickle.loads(made.read_bytes()))
