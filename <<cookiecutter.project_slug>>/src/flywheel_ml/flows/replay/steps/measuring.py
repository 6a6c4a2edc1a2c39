"""Measures the frozen and the live model on the same labelled rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.data import tables
from flywheel_ml.monitoring.performance.intervals import compute_deciding_interval
from flywheel_ml.monitoring.replay.result import Difference, Measured
from flywheel_ml.monitoring.sources.scored_file import from_file


class Answers(NamedTuple):
    """Labels and outputs of n labelled rows, in the order of time: see `metrics.compute_metrics`.

    `differs` says for each row whether the live model was another one than the frozen one.
    """

    truth: np.ndarray
    frozen: np.ndarray
    live: np.ndarray
    differs: np.ndarray


def read_answers(scored: Path, frozen: Path, rows: pl.DataFrame, bundle: Bundle, differs: bool) -> Answers:
    """Read what both models answered in batch, with the labels that have become known since.

    Args:
        scored, frozen: files that batch scoring wrote for the same rows, without labels; both gain the labels.
        rows: the rows with their labels.
        bundle: the frozen model.
        differs: whether the live model is another one.
    """
    live = _read_outputs(scored, rows, bundle)
    other = _read_outputs(frozen, rows, bundle) if differs else live
    return Answers(live[0], other[1], live[1], np.full(len(live[0]), differs))


def concatenate(parts: list[Answers]) -> Answers | None:
    """Join the answers of parts; None without parts."""
    return Answers(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))) if parts else None


def measure(task: Task, truth: np.ndarray, output: np.ndarray, confidence: float) -> Measured | None:
    """Measure the deciding metric with its interval; None if there are too few rows."""
    found = compute_deciding_interval(task, truth, output, confidence)
    return None if found is None else Measured(**found._asdict())


def compare(task: Task, answers: Answers, confidence: float) -> Difference | None:
    """Compare the losses on the rows whose two models differ; None if there are none."""
    from flywheel_ml.model.evaluation import paired

    truth, frozen, live = (part[answers.differs] for part in answers[:3])
    if not len(truth):
        return None
    rows = paired.LabelledRows(truth, live, frozen, np.ones(len(truth)), paired.make_clusters(len(truth), True))
    found = paired.compare(task, rows, confidence)
    return Difference(
        rows=found.rows,
        loss=found.loss,
        frozen=found.champion,
        value=found.difference,
        low=found.low,
        high=found.high,
    )


def read_batch_outputs(scored: Path, contract: Contract) -> list[tuple[float, ...]]:
    """Read the numbers of each batch prediction, as `get_api_output` returns those of the API."""
    frame = pl.read_parquet(scored)
    if contract.task == "binary":
        return list(zip(frame["score"].to_list(), strict=True))
    if contract.task == "multiclass":
        return [tuple(row) for row in frame["probabilities"].to_list()]
    return list(frame.select("prediction", "low", "high").iter_rows())


def get_api_output(prediction: Mapping[str, Any], contract: Contract) -> tuple[float, ...]:
    """Return the numbers of an answer of the API: probabilities, or the predicted number and its interval."""
    if contract.task == "regression":
        return (prediction["prediction"], *prediction["interval"])
    found: tuple[float, ...] = tuple(prediction["probabilities"].values())
    return found[-1:] if contract.task == "binary" else found


def _read_outputs(path: Path, rows: pl.DataFrame, bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Add the labels to a scored file; return truth and outputs of the labelled rows."""
    target = bundle.contract.target.name
    tables.write(pl.read_parquet(path).with_columns(rows[target]), path)
    window = from_file(path, bundle)
    return window.truth, window.output
