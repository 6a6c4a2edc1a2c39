"""Profiles of random tables, and files to monitor."""

from pathlib import Path

import numpy as np
import polars as pl

from flywheel_ml.core import profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.profile import Profile
from flywheel_ml.data import tables


def make_contract(count: int) -> Contract:
    """Make a contract of `count` unbounded numbers, one category and a target."""
    numbers = [Column(name=f"x{at}", type="float", nullable=True) for at in range(count)]
    kind = Column(name="kind", type="string", nullable=True, categories=tuple("abcdefgh"))
    return Contract(name="drawn", columns=(*numbers, kind, Column(name="y", type="boolean", role="target")))


def draw_columns(
    contract: Contract, rows: int, rng: np.random.Generator, shift: dict[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Draw standard normal numbers, optionally shifted, and equally likely categories."""
    columns = {c.name: rng.normal((shift or {}).get(c.name, 0.0), 1, rows) for c in contract.inputs if c.is_numeric}
    kinds = np.array(contract["kind"].categories, dtype=object)
    return {**columns, "kind": kinds[rng.integers(0, len(kinds), rows)]}


def build_reference(contract: Contract, columns: dict[str, np.ndarray], prediction: np.ndarray) -> Profile:
    return profile.build(contract, columns, prediction)


def write_scored_file(frame: pl.DataFrame, bundle: Bundle, path: Path, version: str = "1") -> Path:
    """Write a file as batch scoring does: the rows, their predictions and the model version."""
    answers = bundle.predict(tables.to_columns(frame, bundle.contract.inputs))
    answered = frame.with_columns(
        pl.Series("prediction", answers.values.astype(bool)),
        pl.Series("score", answers.scores),
        pl.lit(version).alias("model_version"),
    )
    tables.write(answered, path)
    return path
