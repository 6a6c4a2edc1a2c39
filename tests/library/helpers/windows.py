"""Profiles of random tables, and files and logs to monitor."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core import profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.profile import Profile
from flywheel_ml.data import tables
from flywheel_ml.prediction_log import Outcome, Prediction, Writer, dumps, new_ids
from flywheel_ml.testing.rows import json_rows

HOUR_US = 3_600_000_000
START_US = 480_000 * HOUR_US
"""A full hour in 2024."""


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


class LoggedModel(NamedTuple):
    """A model as log rows name it."""

    version: str = "7"
    digest: str | None = None
    variant: str = "champion"


def write_log(
    target: str,
    frame: pl.DataFrame,
    bundle: Bundle,
    model: LoggedModel,
    times_us: Sequence[int],
    labelled: Collection[int] = (),
    degraded: Collection[int] = (),
    role: str = "serve",
) -> None:
    """Log the rows of a frame as predictions of a bundle, in the given order.

    Args:
        target: the log.
        frame: n rows with their target.
        bundle: predicts them.
        model: names the model.
        times_us: the time of each row.
        labelled, degraded: positions of rows that have a label, or that a fallback answered.
        role: role of the writer; each has a file of its own.
    """
    contract = bundle.contract
    scores = bundle.predict(tables.to_columns(frame, contract.inputs)).scores
    instances, truth, ids = json_rows(frame, contract), frame[contract.target.name].to_list(), new_ids(frame.height)
    rows = [
        Prediction(
            id=ids[at],
            timestamp_us=times_us[at],
            entity_id=None,
            event_timestamp_us=None,
            variant=model.variant,
            model_version=model.version,
            model_digest=model.digest,
            inputs=dumps(instances[at]),
            output="{}",
            score=float(scores[at]),
            latency_us=100,
            degraded=at in degraded,
        )
        for at in range(frame.height)
    ]
    outcomes = [Outcome(ids[at], times_us[at], json.dumps(truth[at])) for at in labelled]
    with Writer(target, role) as writer:
        writer.append([*rows, *outcomes]).result(timeout=30)
