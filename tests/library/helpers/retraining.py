"""Projects with rows that are newer than their champion, and what a retraining must leave alone."""

import hashlib
from datetime import timedelta
from pathlib import Path

import polars as pl

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.prediction_log import now_us
from library.helpers import project, rows
from library.helpers.commands import find_served_bundle
from library.helpers.windows import LoggedModel, write_log

LOGGED = 60
OF_RUNS = (
    "var",
    "mlflow.db",
    "mlartifacts",
    ".dvc/cache",
    ".dvc/tmp",
    ".git/objects",
    ".git/refs/heads/retrain",
    ".git/logs/refs/heads/retrain",
)
"""What a retraining may change: stores, caches, and its own branch."""


def make_later_rows(contract: Contract, n_rows: int, days: int, seed: int) -> pl.DataFrame:
    """Make rows that begin `days` after the first row of `rows.make_table`, over as many days, with other ids."""
    assert contract.time is not None
    assert contract.id is not None
    table = rows.make_table(contract, n_rows, seed=seed)
    later = pl.col(contract.time.name) + timedelta(days=days)
    return table.with_columns(later, pl.format("{}-{}", pl.lit(days), contract.id.name).alias(contract.id.name))


def add_newer_rows(path: Path) -> None:
    """Extend the raw table by 120 days, and log labelled predictions of the days after them."""
    contract = Contract.load(path / "contract.yaml")
    project.write_raw(path, pl.concat([pl.read_parquet(path / project.RAW), make_later_rows(contract, 2000, 120, 1)]))
    served = Bundle.open(find_served_bundle(path / "var" / "serving"), features=project.PROJECT.features)
    champion = serving_folder.read_routing(path / "var" / "serving").champion
    assert champion is not None
    frame = make_later_rows(contract, 2000, 240, 2).head(LOGGED)
    model = LoggedModel(champion.version, champion.digest)
    write_log(str(path / "var" / "log"), frame, served, model, [now_us()] * LOGGED, range(LOGGED))


def hash_untouched(path: Path) -> dict[str, str]:
    """Hash every file of a project that a retraining must not change, git's index and configuration included."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.is_file() and not name.startswith(OF_RUNS) and "__pycache__" not in name:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
