"""Measures how often the two out-of-fold gates reject: on noise, on weak signal, and if the best model is linear.

    python tests/benchmarks/run.py gate_power -- [--repeats 200] [--candidates all]

Each repeat draws a table of six numbers, lets the candidates compete as training does, and asks the gates at the level
of params.yaml. The linear candidates alone take a minute; with all of them a repeat takes seconds.
"""

import argparse
import time
from typing import NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core.catalog import STANDARD_ESTIMATORS
from flywheel_ml.core.catalog import list_estimators as estimators_of
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import GateParams, TrainParams
from flywheel_ml.model.training import comparison, selection
from flywheel_ml.model.training.selection import TrainingTable
from flywheel_ml.utils import config_model

COLUMNS = "abcdef"


class Case(NamedTuple):
    """A kind of table: share of the target's variance (of its log odds for classes) that the first column explains."""

    name: str
    task: Task
    rows: int
    explained: float


CASES = (
    *(Case("pure noise", task, rows, 0.0) for task in ("binary", "regression") for rows in (150, 500, 2000)),
    *(Case("weak signal", task, rows, 0.05) for task in ("binary", "regression") for rows in (150, 500, 2000)),
    *(Case("signal", task, rows, 0.3) for task in ("binary", "regression") for rows in (150, 500)),
)


def draw(case: Case, rng: np.random.Generator) -> tuple[Contract, pl.DataFrame]:
    """A contract, and rows of independent numbers and a target."""
    target = {"type": "boolean"} if case.task == "binary" else {"type": "float"}
    columns = [
        *({"name": name, "type": "float"} for name in COLUMNS),
        {"name": "target", "role": "target", **target},
    ]
    contract = config_model.parse({"name": "drawn", "columns": columns}, Contract, "drawn")
    values = rng.normal(size=(len(COLUMNS), case.rows))
    noise = rng.normal(size=case.rows) if case.task == "regression" else rng.logistic(size=case.rows) * 3**0.5 / np.pi
    score = case.explained**0.5 * values[0] + (1 - case.explained) ** 0.5 * noise
    drawn = dict(zip(COLUMNS, values, strict=True))
    return contract, pl.DataFrame({**drawn, "target": score > 0 if case.task == "binary" else score})


def is_rejected(case: Case, params: TrainParams, level: float, seed: int) -> tuple[bool, bool]:
    """Whether the gate against the prior, and the one against the linear baseline, reject one drawn table."""
    contract, rows = draw(case, np.random.default_rng(seed))
    featurizer = Featurizer(contract)
    table = TrainingTable.encode(rows, contract, featurizer, "hash", None)
    found = selection.select(table, None, contract, params, featurizer, seed, lambda one: one, selection.ignore_score)
    compared = comparison.compare(case.task, found.out_of_fold)
    return compared["prior"]["p_value"] >= level, compared["linear"]["p_value"] < level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--candidates", choices=("linear", "all"), default="linear")
    asked = parser.parse_args()
    level = GateParams.model_fields["significance_level"].default
    print(
        f"{'table':<12} {'task':<11} {'rows':>5}  {'rejected as no signal':>21}  {'rejected as worse than linear':>28}"
    )
    for case in CASES:
        start = time.perf_counter()
        names = estimators_of(STANDARD_ESTIMATORS, case.task)[: None if asked.candidates == "all" else 2]
        params = TrainParams(estimator="auto", candidates=names)
        found = np.array([is_rejected(case, params, level, seed) for seed in range(asked.repeats)])
        errors = np.sqrt(found.mean(axis=0) * (1 - found.mean(axis=0)) / asked.repeats)
        shown = [f"{mean:.1%} ± {error:.1%}" for mean, error in zip(found.mean(axis=0), errors, strict=True)]
        print(
            f"{case.name:<12} {case.task:<11} {case.rows:>5}  {shown[0]:>21}  {shown[1]:>28}"
            f"  ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
