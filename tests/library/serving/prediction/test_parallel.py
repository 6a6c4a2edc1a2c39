"""Scoring on several cores gives the same predictions as on one."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.features import Inputs
from flywheel_ml.data import tables
from flywheel_ml.serving.prediction import parallel


@pytest.fixture
def bundle(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """On a machine of three cores, whatever this one has."""
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(parallel, "_THREADS", 3)
        monkeypatch.setattr(parallel, "_POOL", pool)
        yield Bundle.open(bundle_path)


def inputs(bundle: Bundle, table: pl.DataFrame, rows: int) -> Inputs:
    """Return rows that all differ from their neighbours."""
    drawn = table.sample(rows, with_replacement=True, seed=1)
    return bundle.encode(tables.to_columns(drawn, bundle.contract.inputs))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports which cores a process may use")
def test_only_usable_cores_are_counted() -> None:
    core = min(os.sched_getaffinity(0))
    told = f"import os; os.sched_setaffinity(0, [{core}]); from {parallel.__name__} import _THREADS; print(_THREADS)"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize("rows", [0, 1, 499, 500, 1003])
def test_parallel_predictions_are_identical(bundle: Bundle, table: pl.DataFrame, rows: int) -> None:
    asked = inputs(bundle, table, rows)
    assert np.array_equal(parallel.run(bundle, asked), bundle.run(asked))


def test_pieces_run_in_parallel_and_errors_propagate(
    bundle: Bundle, table: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)
    run = bundle.run

    def meet(part: Inputs) -> np.ndarray:
        together.wait(10)
        return run(part)

    asked = inputs(bundle, table, 1000)
    monkeypatch.setattr(bundle, "run", meet)
    assert len(parallel.run(bundle, asked)) == 1000

    def fail(part: Inputs) -> np.ndarray:
        if threading.current_thread() is threading.main_thread():
            return run(part)
        raise ArithmeticError("a piece")

    monkeypatch.setattr(bundle, "run", fail)
    with pytest.raises(ArithmeticError, match="a piece"):
        parallel.run(bundle, asked)
